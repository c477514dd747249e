"""Quality, drift and performance checks on frames as they come."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from dagster.components.testing import create_defs_folder_sandbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import pandas as pdst

from dagster_mlops.evidently import (
    DataQualityCheckComponent,
    DriftCheckComponent,
    EvidentlyResource,
    data_quality_check,
    drift_check,
    performance_check,
)
from dagster_mlops.evidently.resource import quiet
from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.normalise import normalise
from dagster_mlops.monitoring.quality.examine import examine
from dagster_mlops.provenance import Dataset, Ref, Report
from tests.support import known_warnings
from tests.support.modes import readable_by_others

# Dagster's own YAML loader calls pydantic's parse_obj_as and its beta code references.
pytestmark = [*known_warnings.DAGSTER_BETA]

MONTHS = dg.StaticPartitionsDefinition(["2013-01", "2013-07"])


def weather(rows: int = 2000, *, warmer: float = 0.0, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "temp": random.normal(40 + warmer, 10, rows),
            "wind": random.gamma(2, 5, rows),
            "origin": random.choice(["EWR", "JFK", "LGA"], rows),
        }
    )


def facts(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {key: value.value for key, value in evaluation.metadata.items()}


def materialized(frames: Mapping[str, object], *checks: dg.AssetsDefinition, metadata=None, **run):
    """One asset per frame and the checks, run for real; the evaluations by name of the check."""

    def an_asset(name: str, frame: object) -> dg.AssetsDefinition:
        @dg.asset(name=name)
        def made() -> dg.Output:
            return dg.Output(frame, metadata=(metadata or {}).get(name, {}))

        return made

    result = dg.materialize(
        [*(an_asset(*item) for item in frames.items()), *checks],
        resources={
            "io_manager": dg.FilesystemIOManager(base_dir="frames"),
            "evidently": EvidentlyResource(reports="reports", keep=2),
        },
        raise_on_error=False,
        **run,
    )
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def test_shifted_columns_are_named_with_scores_report_plot_and_record():
    dataset = Dataset(path="w.parquet", md5="9f", repo="/data")
    check = drift_check(asset="current", reference="reference", drift_share=0.3)
    frames = {"current": weather(warmer=15, seed=1), "reference": weather()}
    done = materialized(frames, check, metadata={"reference": dataset.to_metadata()})["drift"]

    assert not done.passed and done.severity == dg.AssetCheckSeverity.WARN
    assert done.description == "Far from the reference: temp. 1 of 3 columns drifted: temp"
    assert facts(done)["evidently/drift_share"] == pytest.approx(1 / 3)
    assert facts(done)["evidently/score/temp"] > 0.2 > facts(done)["evidently/score/wind"]
    columns = done.metadata["evidently/columns"]
    assert isinstance(columns, dg.TableMetadataValue)
    table = [row.data for row in columns.records]
    assert (table[0]["column"], table[0]["verdict"]) == ("temp", "drifted")
    assert "psi" in str(table[0]["method"]).lower()
    assert len(facts(done)["evidently/plot"]) < 60_000
    record = Report.from_metadata(done.metadata)
    assert (
        record
        and record.drifted == ("temp",)
        and record.upstream == (Ref("dvc", "dataset", "w.parquet@9f", at="/data"),)
    )
    report = Path(facts(done)["evidently/report"])
    assert record.report == str(report) and "<html" in report.read_text()[:2000]
    saved = json.loads(report.with_suffix(".json").read_text())
    assert saved["record"]["id"] == record.id and saved["report"]["metrics"]


def test_the_same_distribution_passes():
    done = materialized(
        {"current": weather(seed=1), "reference": weather()}, drift_check(asset="current", reference="reference")
    )["drift"]
    assert done.passed and facts(done)["evidently/drift_share"] == 0.0


def test_too_few_rows_are_not_judged_and_never_block():
    check = drift_check(asset="current", reference="reference", severity="ERROR", blocking=True)
    done = materialized({"current": weather(40, warmer=10), "reference": weather()}, check)["drift"]
    assert done.passed and facts(done)["evidently/state"] == "undecided"
    assert "40 rows are too few" in (done.description or "") and "40 rows" in facts(done)["evidently/reason"]


def test_a_crash_of_the_check_is_a_failed_check():
    checks = [
        drift_check(asset="current", reference="reference", columns=["temp", "tmep"]),
        data_quality_check(asset="text"),
    ]
    done = materialized({"current": weather(), "reference": weather(), "text": "no frame"}, *checks)
    assert {name: (e.passed, e.severity.value) for name, e in done.items()} == {
        "drift": (False, "ERROR"),
        "data_quality": (False, "ERROR"),
    }
    assert "tmep" in facts(done["drift"])["evidently/error"]
    assert "builtins.str is not a table" in (done["data_quality"].description or "")


def test_a_reference_that_was_never_materialized_is_a_failed_check():
    @dg.asset
    def current() -> pd.DataFrame:
        return weather()

    @dg.asset
    def reference() -> None: ...

    result = dg.materialize(
        [current, reference, drift_check(asset=current, reference=reference)],
        selection=[current],
        resources={"io_manager": dg.FilesystemIOManager(base_dir="f"), "evidently": EvidentlyResource(reports="r")},
    )
    [done] = result.get_asset_check_evaluations()
    assert not done.passed and done.severity == dg.AssetCheckSeverity.ERROR
    assert "cannot load reference through its IO manager" in (done.description or "")


def test_a_partition_is_compared_with_the_one_before_it():
    @dg.asset(partitions_def=MONTHS)
    def flights(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return weather(warmer=40 if context.partition_key == "2013-07" else 0)

    check = drift_check(asset=flights, reference=flights, columns=["temp"])
    resources = {"io_manager": dg.FilesystemIOManager(base_dir="f"), "evidently": EvidentlyResource(reports="r")}
    with dg.instance_for_test() as instance:
        done = [
            dg.materialize(
                [flights, check], instance=instance, resources=resources, partition_key=month
            ).get_asset_check_evaluations()[0]
            for month in ("2013-01", "2013-07")
        ]
    assert "no partition of it is before or beside flights['2013-01']" in (done[0].description or "")
    record = Report.from_metadata(done[1].metadata)
    assert record and (record.current, record.reference) == ("flights[2013-07]", "flights[2013-01]")
    assert record.drift_share == 1.0


def test_only_the_newest_reports_are_kept():
    check = drift_check(asset="current", reference="reference")
    for _ in range(3):
        materialized({"current": weather(), "reference": weather()}, check)
    assert len(list(Path("reports").rglob("*.html"))) == len(list(Path("reports").rglob("*.json"))) == 2


def test_a_report_is_its_owners_also_in_a_folder_that_is_not():
    Path("reports").mkdir(0o755)
    materialized({"current": weather(), "reference": weather()}, drift_check(asset="current", reference="reference"))
    [report] = Path("reports").rglob("*.html")
    report.parent.chmod(0o755)
    assert readable_by_others(Path("reports")) == []


def test_structural_changes_are_drift_and_odd_columns_are_named_rather_than_fatal():
    rows = 600
    good = {"a": np.arange(rows) % 7.0, "b": np.arange(rows) % 5.0, "c": ["x", "y"] * (rows // 2)}
    reference = pd.DataFrame(
        {**good, "gone": 1.0, "void": np.nan, "id": [f"k{i}" for i in range(rows)], "when": pd.Timestamp("2013-01-01")}
    )
    current = pd.DataFrame(
        {
            **good,
            "b": [f"b{i % 5}" for i in range(rows)],
            "c": None,
            "void": 1.0,
            "id": "k",
            "when": pd.Timestamp("2014-01-01"),
        }
    )
    evidently = EvidentlyResource(reports="r")
    named = compare(normalise(current), normalise(reference), evidently, columns=list(reference))
    assert {c.column: c.verdict for c in named.columns} == {
        "a": "stable",
        "b": "was number, is category",
        "c": "empty in the current data",
        "gone": "missing in the current data",
        "void": "empty in the reference: not compared",
        "id": "identifiers repeat: 1 distinct of 600, 100% in the reference",
        "when": "dates: not compared",
    }
    assert named.share == 4 / 5
    inferred = compare(normalise(current), normalise(reference), evidently)
    assert "gone" not in inferred.compared and inferred.share == 3 / 4


@pytest.mark.parametrize("backend", ["numpy_nullable", "pyarrow"])
def test_nullable_and_arrow_frames_give_the_same_numbers_as_numpy_frames(backend):
    plain = weather()
    plain.loc[:99, "temp"] = np.nan
    normal = normalise(plain.convert_dtypes(dtype_backend=backend))
    assert normal.kinds == normalise(plain).kinds == {"temp": "number", "wind": "number", "origin": "category"}
    pd.testing.assert_frame_equal(normal.data, normalise(plain).data, check_exact=True)


def test_arrow_tables_and_polars_frames_are_frames():
    pl, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    plain = weather(50)
    for frame in (pa.Table.from_pandas(plain), pl.DataFrame(plain.to_dict("list")).lazy()):
        pd.testing.assert_frame_equal(normalise(frame).data, normalise(plain).data)


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),  # beyond that, convert_dtypes of pandas fails
    st.floats(),
    st.text(max_size=5),
    st.decimals(allow_nan=False),  # pandas itself cannot hold a signalling NaN
    st.complex_numbers(),
    st.dates(),
    st.timedeltas(),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
)
COLUMN = st.one_of(
    *(st.just(dtype) for dtype in (float, int, bool, "datetime64[ns]", "timedelta64[ns]", complex)),
    st.just(object),
)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    index = pdst.range_indexes(min_size=0, max_size=12)
    names = draw(st.lists(st.sampled_from(["a", "b", "c", 0]), min_size=0, max_size=4, unique=True))
    columns = []
    for name in names:
        dtype = draw(COLUMN)
        elements = CELLS if dtype is object else None
        columns.append(pdst.column(name, dtype=dtype, elements=elements))
    frame = draw(pdst.data_frames(columns, index=index))
    # pandas has no nullable form of complex numbers, also where only the cells of an object column are
    if any(dtype.kind == "c" for dtype in frame.infer_objects().dtypes):
        return frame
    with quiet():
        return frame.convert_dtypes() if draw(st.booleans()) else frame


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames())
def test_any_frame_normalises_to_numbers_text_dates_or_nothing(frame):
    normal = normalise(frame)
    assert len(normal.data) == len(frame)
    for name, kind in normal.kinds.items():
        values: Any = normal.data[name]
        if kind == "number":
            assert values.dtype == float and np.isfinite(values.dropna()).all() and values.notna().any()
        elif kind == "category":
            assert all(isinstance(v, str) for v in values.dropna())
        elif kind == "empty":
            assert values.isna().all()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), frames())
def test_any_two_frames_can_be_compared_and_examined(current, reference):
    result = compare(normalise(current), normalise(reference), EvidentlyResource(reports="r"))
    assert 0.0 <= result.share <= 1.0
    assert all(isinstance(c.drifted, bool) for c in result.columns)
    assert isinstance(examine(current).problems, list)


def test_quality_finds_missing_malformed_out_of_range_and_repeated_values():
    frame = weather(100)
    frame["wind"] = frame["wind"].astype(object)
    frame.loc[:9, "temp"] = np.nan
    frame.loc[10, "temp"], frame.loc[11, "wind"] = 500.0, "calm"
    frame.loc[99] = frame.loc[98]
    check = data_quality_check(
        asset="weather",
        columns=["temp", "wind", "gust"],
        max_missing_share={"temp": 0.05},
        ranges={"temp": (-30, 120)},
        no_duplicates_of=["temp", "wind"],
        min_rows=200,
    )
    done = materialized({"weather": frame}, check)["data_quality"]
    assert not done.passed and done.severity == dg.AssetCheckSeverity.ERROR
    assert (done.description or "").split("; ") == [
        "100 rows, at least 200 expected",
        "'temp' misses 10.0% of its values (allowed 5.0%)",
        "'temp' has 1 values outside -30 to 120",
        "'wind' has 1 malformed values",
        "column 'gust' is not there",
        "1 rows repeat (temp, wind)",
    ]
    assert facts(done)["evidently/duplicates"] == 1
    assert Path(facts(done)["evidently/report"]).exists()


def test_a_column_of_identifiers_is_summed_up_as_text_and_not_label_by_label(tmp_path):
    frame = pd.DataFrame({"id": [f"flight {n}" for n in range(5_000)], "carrier": list("ABCDE") * 1_000})
    frame["id"] = frame["id"].mask(frame.index < 500)
    normal = normalise(frame)
    tool = EvidentlyResource(reports=str(tmp_path))
    report = tool.summary(normal, list(normal.kinds), name="ids")
    assert report
    summary = report.snapshot
    metrics = [metric["metric_name"] for metric in summary.dict()["metrics"]]
    counted = [name for name in metrics if name.startswith("UniqueValueCount")]
    assert counted and all("carrier" in name for name in counted)
    [missing] = [m["value"] for m in summary.dict()["metrics"] if m["metric_name"] == "MissingValueCount(column=id)"]
    assert missing["count"] == 500
    saved = tool.save(summary, folder="quality", name="ids")
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.json")) < 100_000, saved


def test_a_good_frame_passes_and_an_empty_one_fails_on_its_rows():
    done = materialized({"weather": weather()}, data_quality_check(asset="weather", max_missing_share=0.0))
    assert done["data_quality"].passed
    done = materialized({"weather": weather(0)}, data_quality_check(asset="weather"))
    assert done["data_quality"].description == "0 rows, at least 1 expected"


def predictions(rows: int = 1000, *, skill: float = 0.4, labelled: int | None = None) -> pd.DataFrame:
    random = np.random.default_rng(3)
    late = random.random(rows) < 0.3
    score = np.clip(0.3 + skill * (late - 0.3) + random.normal(0, 0.15, rows), 0, 1)
    frame = pd.DataFrame({"id": range(rows), "late": late.astype(object), "p": score})
    if labelled is not None:
        frame.loc[labelled:, "late"] = None
    return frame


def test_predictions_are_measured_on_the_labels_that_have_arrived():
    check = performance_check(
        asset="served", target="late", prediction="p", labels="arrivals", key="id", bounds={"roc_auc": 0.65}
    )
    served = predictions().drop(columns="late")
    done = materialized({"served": served, "arrivals": predictions(labelled=400)[["id", "late"]]}, check)["performance"]
    assert done.passed
    assert (facts(done)["evidently/labelled"], facts(done)["evidently/unlabelled"]) == (400, 600)
    from sklearn.metrics import roc_auc_score

    known = predictions()[:400]
    expected = roc_auc_score(known["late"].astype(int), known["p"])
    assert facts(done)["evidently/roc_auc"] == pytest.approx(expected)


def test_performance_worse_than_the_reference_fails():
    check = performance_check(asset="served", target="late", prediction="p", reference="validation", max_drop=0.05)
    done = materialized({"served": predictions(skill=0.05), "validation": predictions()}, check)["performance"]
    assert not done.passed and "roc_auc is" in (done.description or "")


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (predictions(labelled=10), "10 rows have one, min_labels=200"),
        (predictions(labelled=0), "0 rows have one"),
        (predictions().assign(late=True), "all 1000 labels that have arrived are 1"),
    ],
)
def test_without_enough_labels_nothing_is_judged(frame, says):
    check = performance_check(asset="served", target="late", prediction="p", bounds={"f1": 0.1})
    done = materialized({"served": frame}, check)["performance"]
    assert done.passed and facts(done)["evidently/state"] == "undecided"
    assert says in (done.description or "")


def test_numbers_are_measured_as_a_regression():
    frame = pd.DataFrame({"delay": np.arange(300.0), "guess": np.arange(300.0) + 2})
    check = performance_check(
        asset="served", target="delay", prediction="guess", task="regression", bounds={"mae": 1.0, "r2": 0.9}
    )
    done = materialized({"served": frame}, check)["performance"]
    assert facts(done)["evidently/mae"] == pytest.approx(2.0)
    assert done.description == "mae is 2.0000, at most 1 was expected"


def test_a_quality_check_in_yaml_checks_what_it_says():
    attributes = {"asset": "weather", "ranges": {"temp": [-30, 120]}, "max_missing_share": {"temp": 0.1}}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=DataQualityCheckComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.evidently.DataQualityCheckComponent",
                "attributes": attributes,
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [check] = defs.asset_checks or []
    assert isinstance(check, dg.AssetsDefinition)
    done = materialized({"weather": weather().assign(temp=500.0)}, check)["data_quality"]
    assert done.description == "'temp' has 2000 values outside -30 to 120"


def test_a_drift_check_in_yaml():
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=DriftCheckComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.evidently.DriftCheckComponent",
                "attributes": {"asset": "live/predictions", "reference": "training_set", "columns": ["temp"]},
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [check] = defs.asset_checks or []
            assert isinstance(check, dg.AssetsDefinition)
            assert {k.to_user_string() for k in check.check_keys} == {"live/predictions:drift"}


def test_a_plot_or_report_that_fails_is_a_line_in_the_result_and_the_verdict_stands(monkeypatch):
    """Each of them was a crash, which failed the check with severity ERROR."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Path("reports").write_text("no folder")
    checks = [
        drift_check(asset="current", reference="reference"),
        data_quality_check(asset="current", max_missing_share=0.0),
        performance_check(asset="served", target="late", prediction="p", bounds={"f1": 0.1}),
    ]
    done = materialized({"current": weather(seed=1), "reference": weather(), "served": predictions()}, *checks)
    assert done["drift"].passed
    for name, result in done.items():
        assert "crashed" not in (result.description or ""), name
        assert "matplotlib" in str(facts(result)["evidently/plot"]), name
        assert "cannot write a report" in str(facts(result)["evidently/report"]), name
    record = Report.from_metadata(done["drift"].metadata)
    assert record and record.passed and not record.report
