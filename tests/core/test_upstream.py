"""Fails when Dagster has a public name for one that we take from its inside."""

import dagster as dg
import pytest

from dagster_mlops.core import upstream


@pytest.mark.parametrize("name", ["CheckError", "AssetGraph", "AssetCheckExecutionRecord"])
def test_dagster_has_no_public_name(name):
    assert not hasattr(dg, name), f"use dg.{name}, and drop it from core/upstream.py"


def test_dagster_does_not_tell_the_names_that_it_takes_for_no_asset():
    assert not {"DISALLOWED_NAMES", "RESERVED_NAMES"} & set(dir(dg)), f"use it in place of {upstream.reserved_names}"
    for name in ("type", "conf"):
        assert name in upstream.reserved_names()
        with pytest.raises(dg.DagsterInvalidDefinitionError, match=name):
            dg.asset(name=name)(lambda: None)
