"""What was written once stays readable, whatever roles and tools are known where it is read."""

import dataclasses
import io
import json
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dagster_mlops import provenance
from dagster_mlops.errors import ProvenanceError
from dagster_mlops.lineage import EventLog, status, trace
from dagster_mlops.lineage.chain.tree import chain_tree
from dagster_mlops.lineage.production.screen import status_screen
from dagster_mlops.provenance import Dataset, Record, Ref, TrainingRun, records_in
from tests.support.packages import install_package

STORED = {file.stem: file.read_text() for file in (Path(__file__).parent / "stored_records").glob("*.json")}
RUN, DATA = "ef2d127de37b942baad06145e54b0c61", "raw/flights/2013-01.parquet@9f86d081884c7d659a2feaa0c55ad015"
# Each kind of schema 1: its class, its ref, and the refs that it names.
SCHEMA_1 = {
    "commit": (provenance.Commit, "git:commit:05d326c4a1b2c3d4e5f60718293a4b5c6d7e8f90", []),
    "dataset": (provenance.Dataset, f"dvc:dataset:{DATA}", ["git:commit:05d326c4a1b2c3d4e5f60718293a4b5c6d7e8f90"]),
    "feature_view": (
        provenance.FeatureView,
        "feast:feature_view:flights/origin_weather@5feceb66ffc86f38",
        [f"dvc:dataset:{DATA}"],
    ),
    "training_set": (
        provenance.TrainingSet,
        "feast:training_set:flights/arrival_delay@6b86b273ff34+d4735e3a265e+4e07408562be",
        [f"dvc:dataset:{DATA}", "feast:feature_view:flights/origin_weather@5feceb66ffc86f38"],
    ),
    "training_run": (
        provenance.TrainingRun,
        f"mlflow:training_run:{RUN}",
        [
            "feast:training_set:flights/arrival_delay@6b86b273ff34+d4735e3a265e+4e07408562be",
            f"dvc:dataset:{DATA}",
            "git:commit:05d326c4a1b2c3d4e5f60718293a4b5c6d7e8f90",
        ],
    ),
    "model_version": (provenance.ModelVersion, "mlflow:model_version:delay/3", [f"mlflow:training_run:{RUN}"]),
    "bento": (provenance.Package, "bentoml:package:delay:3-19581e27de7c", ["mlflow:model_version:delay/3"]),
    "deployment": (
        provenance.Deployment,
        "bentoml:deployment:deployment/3-19581e27de7c-1767225600",
        ["bentoml:package:delay:3-19581e27de7c"],
    ),
    "prediction": (
        provenance.Prediction,
        "bentoml:prediction:7f3c9a",
        ["bentoml:deployment:deployment/3-19581e27de7c-1767225600"],
    ),
    "drift_report": (
        provenance.Report,
        "evidently:report:2013-07-01",
        ["bentoml:deployment:deployment/3-19581e27de7c-1767225600"],
    ),
}


@pytest.mark.parametrize("kind", SCHEMA_1)
def test_a_record_of_schema_1_reads_as_it_was_meant(kind):
    cls, ref, upstream = SCHEMA_1[kind]
    record = Record.from_json(STORED[kind])
    assert type(record) is cls and str(record.ref) == ref
    assert [str(up) for up in record.upstream] == upstream
    assert record.tool_facts == {} and record.title() and record.details()
    old = json.loads(STORED[kind])
    kept = {"package" if name == "bento" else name: value for name, value in old.items()}
    new = record.to_dict()
    assert new["schema"] == 2 and Record.from_dict(new) == record
    assert {name: new.get(name, "") for name in kept if name not in ("schema", "kind", "upstream")} == {
        name: value for name, value in kept.items() if name not in ("schema", "kind", "upstream")
    }


def test_every_kind_of_schema_1_has_an_example():
    assert set(STORED) == set(SCHEMA_1) and {cls.role for cls, _, _ in SCHEMA_1.values()} == {
        role.role for role in Record.__subclasses__() if role.__module__.startswith("dagster_mlops.")
    } - {"prediction_batch"}, "the roles since schema 2"


def test_what_schema_1_left_on_assets_is_found_under_its_old_keys():
    with dg.DagsterInstance.ephemeral() as instance:
        for kind, text in STORED.items():
            metadata = {f"dagster_mlops/{kind}": dg.MetadataValue.json(json.loads(text))}
            instance.report_runless_asset_event(dg.AssetMaterialization(kind, metadata=metadata))
        live = Record.from_json(STORED["deployment"])
        chain = trace(live.ref, tools={}, instance=instance)
        assert [link.ref.role for link in chain.walk()][:4] == [
            "deployment",
            "package",
            "model_version",
            "training_run",
        ]
        assert all(link.source == "dagster" for link in chain.walk())
        [production] = status(instance).production
        assert production.package and production.package.tag == "delay:3-19581e27de7c"


@given(st.sampled_from(sorted(STORED)), st.dictionaries(st.text(min_size=1, max_size=9), st.integers(), max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_fact_that_is_not_known_survives_the_upgrade(kind, more):
    own = {f"x {name}": value for name, value in more.items()}
    record = Record.from_dict({**json.loads(STORED[kind]), **own})
    assert record.tool_facts == own
    assert Record.from_json(record.to_json()) == record


# Anything that can be said in JSON, with names and kinds that mean something now and then.
NAMES = st.sampled_from(
    ["schema", "kind", "of", "upstream", "tool_facts", "tool", "path", "md5", "repo", "metrics", "id", "x"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | st.sampled_from(["", "dataset", "training_run", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@given(st.sampled_from([1, 2, 3, None]), JSON, JSON, st.dictionaries(NAMES, JSON, max_size=6))
@settings(max_examples=300, deadline=None)
def test_anything_is_a_record_or_a_provenance_error_and_is_shown(schema, kind, upstream, facts):
    data = {**facts, "schema": schema, "kind": kind, "upstream": upstream}
    try:
        record = Record.from_dict(data)
        again = Record.from_json(record.to_json())
    except ProvenanceError as error:
        assert 10 < len(str(error)) < 500
        return
    assert repr(again) == repr(record)  # by text: NaN is not equal to itself
    assert isinstance(record.title(), str) and all(isinstance(text, str) for text in record.details())


# --- a role that nobody knows


def _text(renderable) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(renderable)
    return out.getvalue()


def test_a_role_that_nobody_knows_is_shown_as_itself():
    data = Dataset(path="a", md5="1", repo="/data")
    table = Record(
        of=Ref("iceberg", "lake_table", "db.flights@5", at="s3://lake"),
        tool_facts={"snapshot": 5},
        upstream=(data.ref,),
        dagster_asset="lake",
    )
    run = TrainingRun(run_id="r", tracking_uri="sqlite:///m.db", code_commit="c0ffee", upstream=(table.ref,))
    with dg.DagsterInstance.ephemeral() as instance:
        for record in (data, table, run):
            metadata = record.to_metadata()
            assert f"dagster_mlops/{record.role}" in metadata
            instance.report_runless_asset_event(dg.AssetMaterialization(record.role, metadata=metadata))
        chain = trace(run.ref, tools={}, instance=instance)
        assert [link.record for link in chain.walk()] == [run, table, data], "the chain goes on below it"
        shown = _text(chain_tree(chain))
        assert "lake table db.flights@5" in shown and "snapshot=5" in shown
        state = status(instance)
        assert state.other_records == (table,) and state.to_dict()["other_records"] == [table.to_dict()]
        assert "lake table db.flights@5: asset lake · snapshot=5" in _text(status_screen(state))
        # A class of somebody's own, of schema 1, which did not say its tool or its id.
        old = {"schema": 1, "kind": "lake_view", "name": "late_flights", "upstream": []}
        event = dg.AssetMaterialization("view", metadata={"dagster_mlops/lake_view": dg.MetadataValue.json(old)})
        instance.report_runless_asset_event(event)
        assert "lake view" in _text(status_screen(status(instance)))
        assert "name=late_flights" in _text(status_screen(status(instance)))


def test_one_record_that_cannot_be_read_hides_no_other_and_is_named_where_a_link_is_lost():
    data = Dataset(path="a", md5="1", repo="/data")
    lost = Ref("dvc", "dataset", "b@2", at="/data")
    later = {"schema": 99, "of": {"tool": "dvc", "role": "dataset", "id": "b@2"}}
    metadata = {"dagster_mlops/dataset/b": dg.MetadataValue.json(later), **data.to_metadata()}
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("things", metadata=metadata))
        events = EventLog(instance)
        assert [record for record, _ in events.entries(Dataset)] == [data]
        link = trace(lost, tools={}, instance=events)
        assert (
            link.bucket == "inaccessible"
            and "1 record(s) that cannot be read: things : The record has schema 99" in (link.reason)
        )


# --- a second tool of a role

WANDB = """
    from dataclasses import dataclass
    from typing import ClassVar

    from dagster_mlops.provenance import Accessible, Record, Ref, TrainingRun

    @dataclass(frozen=True, kw_only=True)
    class WandbRun(Record):
        role: ClassVar[str] = "training_run"
        tool: str = "wandb"
        entity: str

    class WandbTool:
        def resolve(self, ref):
            return Accessible(
                TrainingRun(tool="wandb", run_id=ref.id, tracking_uri=ref.at, tool_facts={"entity": "acme"})
            )
    """


def test_a_second_tracker_leaves_the_runs_of_the_first_readable(monkeypatch, tmp_path):
    install_package(monkeypatch, tmp_path, files={"acme_wandb": WANDB}, tools={"wandb": "acme_wandb:WandbTool"})
    ref = Ref("wandb", "training_run", "acme/churn/3xk2", at="https://api.wandb.ai")
    link = trace(ref)
    run = link.record
    assert link.bucket == "accessible" and isinstance(run, TrainingRun) and run.ref == ref
    assert run.to_metadata()["wandb/entity"] == "acme" and run.to_metadata()["wandb/run_id"] == "acme/churn/3xk2"
    assert list(records_in(run.to_metadata())) == [run]
    old = Record.from_json(STORED["training_run"])
    assert type(old) is TrainingRun and old.tool == "mlflow"


def test_own_facts_never_hide_those_of_the_role():
    with pytest.raises(ProvenanceError, match="names that the record itself uses: run_id, upstream"):
        TrainingRun(run_id="r", tracking_uri="u", tool_facts={"run_id": "x", "upstream": 1})
    with pytest.raises(ProvenanceError, match="cannot have a training_run record"):
        TrainingRun(run_id="r", tracking_uri="u", of=Ref("wandb", "dataset", "x"))


def test_an_id_that_does_not_follow_from_the_facts_is_kept():
    ref = Ref("wandb", "model_version", "entity/project/model:v3", at="https://api.wandb.ai")
    record = provenance.ModelVersion(of=ref, name="model", version="v3", run_id="r", tracking_uri=ref.at)
    again = Record.from_json(record.to_json())
    assert again == record and again.ref == ref and again.tool == "wandb"
    moved = dataclasses.replace(record, aliases=("champion",))
    assert moved.ref == ref
