"""Fails when Dagster has a public name for one that we take from its inside."""

import dagster as dg
import pytest


@pytest.mark.parametrize("name", ["CheckError", "AssetGraph", "AssetCheckExecutionRecord"])
def test_dagster_has_no_public_name(name):
    assert not hasattr(dg, name), f"use dg.{name}, and drop it from core/upstream.py"
