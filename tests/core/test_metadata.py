"""Tables, links and short texts on an asset's page."""

import dagster as dg

from dagster_mlops.core.metadata import link, shorten, table


def test_a_table_holds_what_dagster_can_show_and_no_rows_are_no_table():
    rows = [{"n": 1, "share": 0.5, "good": True, "none": None, "list": ["a"]}]
    value = table("dvc/outs", rows)["dvc/outs"]
    assert value.records == [dg.TableRecord({"n": 1, "share": 0.5, "good": True, "none": None, "list": "['a']"})]
    assert table("dvc/outs", iter([])) == {}


def test_a_tables_schema_is_kept():
    schema = dg.TableSchema([dg.TableColumn("n", "int")])
    assert table("dvc/outs", [{"n": 1}], schema=schema)["dvc/outs"].schema == schema


def test_a_link_is_there_only_where_the_tool_has_a_page():
    assert link("mlflow/run_url", "http://host/run")["mlflow/run_url"].url == "http://host/run"
    assert link("mlflow/run_url", "") == link("mlflow/run_url", None) == {}


def test_a_text_is_shortened_to_the_length_with_an_ellipsis():
    assert shorten("same", 4) == "same" and shorten("longer", 4) == "lon…" and shorten("a b c d", 5) == "a b…"
