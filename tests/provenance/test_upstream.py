"""Fails when Python has a public name for one that we take from its inside."""

import os

from dagster_mlops.provenance import upstream


def test_python_has_no_quick_public_view_of_all_variables(monkeypatch):
    # A view that is not a copy would do.
    assert not {"data", "raw", "view"} & set(dir(os.environ)), f"drop {upstream.all_variables}"
    before = dict(upstream.all_variables())
    assert upstream.all_variables() == before
    monkeypatch.setenv("VARIABLE_OF_A_TEST", "1")
    assert upstream.all_variables() != before and len(before) == len(os.environ) - 1
