"""Remedies: a table of data, and one machine that finds the first that fits an error or its cause."""

import doctest
import sqlite3

import pytest

from dagster_mlops.core import advice as module
from dagster_mlops.core.advice import Advice, advice
from dagster_mlops.dvc.store import remotes
from dagster_mlops.feast.online import stores
from dagster_mlops.mlflow.server import advice as mlflow_advice

TABLE = (
    Advice("Free some space.", types="ENOSPC"),
    Advice("Create it.", types="FileNotFoundError"),
    Advice("End {0}.", pattern=r"locked by (\w+)", link="https://www.sqlite.org/rescode.html#busy"),
    Advice("Start {place}.", types="sqlite3.OperationalError"),
    Advice("Install {error.name}.", types="ModuleNotFoundError"),
    Advice(lambda number, place: f"{place} has {number}.", pattern=r"version (\d+)"),
)


class MissingBucketError(FileNotFoundError):
    """As storage libraries derive theirs from a built-in class."""


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(28, "full"), "Free some space."),
        (OSError("full"), ""),
        (MissingBucketError("s3://none"), "Create it."),
        (sqlite3.OperationalError("locked by dvc"), "End dvc. See https://www.sqlite.org/rescode.html#busy"),
        (sqlite3.OperationalError("no answer"), "Start the store."),
        (ModuleNotFoundError(name="dvc_s3"), "Install dvc_s3."),
        ("found version 12", "the store has 12."),
        (ValueError("a {brace} and 100 %"), ""),
    ],
)
def test_the_first_remedy_that_fits_is_given(error, remedy):
    assert advice(error, TABLE, place="the store") == remedy


def test_the_cause_of_an_error_has_a_remedy_where_the_error_has_none():
    try:
        try:
            raise OSError(28, "full")
        except OSError as cause:
            raise RuntimeError("3 objects failed") from cause
    except RuntimeError as error:
        assert advice(error, TABLE, place="") == "Free some space."


def test_an_entry_without_pattern_and_types_is_for_every_other_error():
    table = (Advice("Grant it.", pattern=r"\b403\b"), Advice("Start {uri}."))
    assert advice("403 Forbidden", table, uri="x") == "Grant it." and advice("gone", table, uri="x") == "Start x."


@pytest.mark.parametrize("table", [remotes.REMEDIES, stores.REMEDIES, mlflow_advice.REMEDIES])
def test_each_entry_of_a_tools_table_says_when_it_holds_and_has_a_full_sentence(table):
    for entry in table[:-1]:
        assert entry.pattern or entry.types
    for entry in table:
        assert callable(entry.remedy) or entry.remedy.endswith(".")
        assert not entry.link or entry.link.startswith("https://")


def test_the_examples_in_the_docstrings_run():
    outcome = doctest.testmod(module)
    assert outcome.attempted and not outcome.failed
