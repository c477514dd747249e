"""What a record names is not a place to go to: tools are asked only where the caller has said."""

import json
import os
import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.core.places import ALLOW, Places
from dagster_mlops.errors import FeatureError, ReproductionError, ToolError
from dagster_mlops.feast.rebuild import replay
from dagster_mlops.lineage import trace
from dagster_mlops.lineage.chain.names import find_ref
from dagster_mlops.lineage.chain.sources import EventLog, Tools
from dagster_mlops.lineage.reproduction import rerun
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.tool import MlflowTool
from dagster_mlops.provenance import (
    Commit,
    Dataset,
    FeatureView,
    ModelVersion,
    Prediction,
    Record,
    Ref,
    TrainingRun,
    TrainingSet,
)
from dagster_mlops.tools import KeepsRuns
from tests.support import known_warnings
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [
    *known_warnings.UNCLOSED,
    *known_warnings.MLFLOW,
    *known_warnings.DEPRECATED,
    *known_warnings.FEAST_EXPERIMENTAL,
]

TOKEN = "the-company's-token"


class _Elsewhere(QuietServer):
    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        super().__init__(handler)
        self.requests: list[tuple[str, str | None]] = []


class _Recorder(QuietHandler):
    def _answer(self):
        assert isinstance(self.server, _Elsewhere)
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        self.send_response(404)
        self.end_headers()

    do_GET = do_POST = _answer


@pytest.fixture
def elsewhere(monkeypatch):
    """A server of someone else, which notes each request; and the caller's token in the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.delenv(ALLOW, raising=False)
    server = _Elsewhere(_Recorder)
    with serving(server):
        yield server


def _logged(folder, *upstream):
    """The ref of a prediction in a log whose line names these things as upstream."""
    folder.mkdir(exist_ok=True)
    record = Prediction(
        request_id="req-1", timestamp="2026-01-01T00:00:00+00:00", prediction_log=str(folder), upstream=upstream
    )
    facts = {**record.to_dict(), "request_id": "req-1"}
    (folder / "2026-01-01-1.jsonl").write_text(json.dumps(facts) + "\n")
    return record.ref


def test_no_request_and_no_token_goes_to_a_server_that_a_log_line_names(elsewhere, tmp_path):
    start = _logged(tmp_path / "log", Ref("mlflow", "model_version", "delay/3", at=elsewhere.url))
    [link] = trace(start).upstream
    assert link.bucket == "inaccessible" and not elsewhere.requests
    assert f"a record names this place, and you did not. If it is one of yours, allow it: --allow {elsewhere.url}" in (
        link.reason
    )
    trace(start, allow=[elsewhere.url])
    assert f"Bearer {TOKEN}" in {token for _, token in elsewhere.requests}, "where the caller says so, it is asked"


@pytest.mark.parametrize(
    ("allowed", "hostile"),
    [
        ("http://127.0.0.1:{port}/ours", "http://127.0.0.1:{port}/"),
        ("http://127.0.0.1", "http://127.0.0.1:{port}"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1@127.0.0.1:{port}/"),
        ("http://127.0.0.1:{port}/a", "http://127.0.0.1:{port}/ab"),
        *(
            ("http://127.0.0.1:{port}/a", f"http://127.0.0.1:{{port}}/a/{way_up}b")
            for way_up in ("../", "%2e%2E/", "..%2f", "..\\", "%252e%252e/", "..;/", "\t../", ".\t./", "..?")
        ),
    ],
)
def test_a_server_with_a_name_like_one_of_ours_is_not_asked(elsewhere, tmp_path, allowed, hostile):
    port = elsewhere.server_port
    start = _logged(tmp_path / "log", Ref("mlflow", "training_run", "f" * 32, at=hostile.format(port=port)))
    [link] = trace(start, allow=[allowed.format(port=port)]).upstream
    assert link.bucket == "inaccessible" and "names this place" in link.reason and not elsewhere.requests


def test_a_folder_is_allowed_by_its_real_path(tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW, f"{tmp_path}/env, sqlite:///ours.db")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "out").symlink_to(tmp_path / "theirs")
    places = Places([f"{tmp_path}/ours/"])

    def asked(at):
        return places.refusal(Ref("feast", "feature_view", "p/v@1", at=at)) is None

    for ours in ("ours", "ours/features", "ours/../ours/x", "env", "env/x"):
        assert asked(f"{tmp_path}/{ours}"), ours
    for theirs in ("ours/../theirs", "ours/out", "ours/out/x", "ours-too", "", "envy", "ours/../../x"):
        assert not asked(f"{tmp_path}/{theirs}"), theirs
    more = Places(["file:///srv", "https://ours/a"])
    for theirs in ("file:///srv/../x", "file:///srv/%2E./x", "https://ours/a/..", "https://ours/b"):
        assert more.refusal(Ref("mlflow", "training_run", "1", at=theirs)), theirs
    assert not more.refusal(Ref("mlflow", "training_run", "1", at="file:///srv/a..b/..c"))
    assert asked("sqlite:///ours.db") and not asked("sqlite:///theirs.db") and asked("")


def test_the_checkout_in_which_the_caller_stands_is_the_callers(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path / "ours")], check=True)
    (tmp_path / "ours" / "src").mkdir()
    monkeypatch.chdir(tmp_path / "ours" / "src")
    places = Places()
    assert places.refusal(Ref("git", "commit", "f" * 40, at=str(tmp_path / "ours"))) is None
    assert places.refusal(Ref("git", "commit", "f" * 40, at=str(tmp_path)))


class _Spy:
    """A tool that notes at which places it is asked."""

    def __init__(self):
        self.places: list[str] = []

    def resolve(self, ref):
        self.places.append(ref.at)
        raise OSError("nothing here")


COMMIT, THEIRS = Commit(sha="c0ffee" * 6, repo="/code"), Commit(sha="bad" * 12, repo="/theirs/code")


def _report(instance, record, event: type[dg.AssetMaterialization | dg.AssetObservation] = dg.AssetMaterialization):
    instance.report_runless_asset_event(event(record.role, metadata=record.to_metadata()))


def test_the_event_log_names_places_where_runs_have_made_something_and_none_that_a_tag_has_put_in():
    run = TrainingRun(run_id="r", tracking_uri="sqlite:///ours.db", upstream=(COMMIT.ref,))
    view = FeatureView(name="v", project="p", repo="/features", version="1")
    promoted = ModelVersion(  # as the tag of a version says, which anyone may set
        name="m",
        version="1",
        tracking_uri="http://registry",
        upstream=(
            TrainingRun(run_id="x", tracking_uri="http://theirs").ref,
            Dataset(path="d", md5="0" * 32, repo="/theirs/data").ref,
            view.ref,
            THEIRS.ref,
        ),
    )
    observed = Dataset(path="o", md5="1" * 32, repo="/data", upstream=(Ref("git", "commit", "e" * 40, at="/theirs/2"),))
    with dg.DagsterInstance.ephemeral() as instance:
        for record in (run, view, promoted):
            _report(instance, record)
        _report(instance, observed, dg.AssetObservation)
        spy = _Spy()
        tools = {name: spy for name in ("git", "dvc", "feast", "mlflow")}
        chain = trace(promoted.ref, tools=tools, instance=instance)
        for record in (run, observed):
            trace(record.ref, tools=tools, instance=instance)
        log = EventLog(instance)
        assert find_ref("m/1", tools=Tools(tools), events=log) == promoted.ref
        assert log.names(COMMIT.ref) and not log.names(THEIRS.ref)
        assert not log.names(FeatureView(name="v", project="p", repo="/code", version="1").ref), "only git looks there"
    assert set(spy.places) == {"http://registry", "/features", "sqlite:///ours.db", "/code", "/data"}
    assert "accessible" not in {link.bucket for link in chain.walk()}
    refused = {link.ref.at for link in chain.walk() if "names this place" in link.reason}
    assert refused == {"http://theirs", "/theirs/data", "/theirs/code"}
    assert any(link.source == "dagster" and link.ref == view.ref for link in chain.walk())


@pytest.mark.parametrize("tool", ["bentoml", "mlflow_serving"])
def test_an_id_is_not_a_path(tmp_path, tool):
    (tmp_path / "home" / "bentos").mkdir(parents=True)
    for id in ("../../theirs", "x:../../../theirs", "/theirs", f"{tmp_path}/theirs"):
        link = trace(Ref(tool, "package", id, at=str(tmp_path / "home")), timeout=60)
        assert link.bucket == "faulty" and "not a name below its folder" in link.reason


def test_a_capability_is_not_used_at_a_place_that_the_caller_has_not_named():
    tools = Tools({"mlflow": MlflowTool()})
    with pytest.raises(ToolError, match="is not asked at http://theirs: a record names this place"):
        tools.tool_for(Ref("mlflow", "training_run", "1", at="http://theirs"), KeepsRuns)


def _recipe(training_set) -> Any:
    return SimpleNamespace(rebuilds={"rows": training_set})


def test_a_rebuild_opens_no_repository_that_only_a_registry_names(tmp_path):
    training_set = TrainingSet(feature_service="s", project="p", repo="/ours", registry_hash="r", entity_hash="e")

    class Rebuilds(_Spy):
        def rebuild(self, ref, folder):
            self.places.append(str(replay.datasets_of("/ours/data").root))  # pyright: ignore[reportAttributeAccessIssue]
            return replay.datasets_of("/theirs")

    tools, recipe = Tools({"feast": Rebuilds()}, allow=["/ours"]), _recipe(training_set)
    with pytest.raises(ReproductionError, match=r"cannot be rebuilt: .* dvc is not asked at /theirs: a record names"):
        rerun._rebuild(recipe, tmp_path, tools, print)


def test_a_rebuild_in_a_code_location_opens_only_the_repositories_that_its_caller_named(monkeypatch):
    """Whoever can write to the Feast registry can name any repository, whose DVC settings are code."""
    monkeypatch.delenv(ALLOW, raising=False)
    for named in ("/ours", "/ours/data"):
        assert replay.datasets_of("/ours/data", allow=[named]).root == Path("/ours/data")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FeatureError, match=r"dvc is not asked at /theirs: .*--allow /theirs.* Or pass datasets="):
        replay.datasets_of("/theirs", allow=["/ours"])
    monkeypatch.setenv(ALLOW, "/theirs")
    assert replay.datasets_of("/theirs")


def test_the_record_in_a_tag_does_not_say_where_its_version_and_run_are(tmp_path):
    resource = MlflowResource(tracking_uri=f"sqlite:///{tmp_path / 'ours.db'}")
    client = resource.client()
    run = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "artifacts")))
    there = TrainingRun(run_id=run.info.run_id, tracking_uri="http://theirs")
    client.set_tag(run.info.run_id, "dagster_mlops.record", there.to_json())
    client.create_registered_model("m")
    client.create_model_version("m", str(tmp_path), run.info.run_id)
    for record in (
        ModelVersion(name="m", version="0", tracking_uri="http://theirs", upstream=(there.ref, THEIRS.ref)),
        ModelVersion(
            of=Ref("mlflow", "model_version", "m/1", at="http://theirs"),
            name="m",
            version="0",
            tracking_uri="http://theirs",
            upstream=(there.ref, THEIRS.ref),
        ),
    ):
        client.set_model_version_tag("m", "1", "dagster_mlops.record", record.to_json())
        answers = [resource.models, MlflowTool().resolve(Ref("mlflow", "model_version", "m/1", at=resource.uri))]
        with answers[0]() as models:
            found = [models.version("m", "1"), answers[1].record]
        for version in found:
            assert isinstance(version, ModelVersion) and version.ref.at == version.tracking_uri == resource.uri
            assert version.upstream == (Ref("mlflow", "training_run", there.run_id, at=resource.uri), THEIRS.ref)
    answer = MlflowTool().resolve(Ref("mlflow", "training_run", there.run_id, at=resource.uri))
    assert isinstance(answer.record, Record) and answer.record.ref.at == resource.uri


@pytest.mark.parametrize("scheme", ["http", pytest.param("mlflow-artifacts", marks=pytest.mark.thorough)])
def test_the_files_of_a_version_are_not_looked_for_on_another_server(elsewhere, tmp_path, scheme):
    resource = MlflowResource(tracking_uri=f"sqlite:///{tmp_path / 'ours.db'}")
    client = resource.client()
    client.create_registered_model("m")
    client.create_model_version("m", f"{scheme}://127.0.0.1:{elsewhere.server_port}/api/files", "")
    record = ModelVersion(name="m", version="0", tracking_uri=resource.uri)
    client.set_model_version_tag("m", "1", "dagster_mlops.record", record.to_json())
    answer = trace(Ref("mlflow", "model_version", "m/1", at=resource.uri))
    assert answer.bucket == "inaccessible" and "another server than" in answer.reason and not elsewhere.requests


@pytest.mark.thorough
def test_no_feature_view_is_unpickled_from_a_registry_that_a_record_names(tmp_path, monkeypatch):
    """An on-demand view is a pickle, which Feast loads as soon as it lists the views."""
    import dill
    import feast
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64

    repo, marker = tmp_path / "theirs", tmp_path / "ran"
    repo.mkdir()
    settings = "project: p\nprovider: local\nregistry: registry.db\nentity_key_serialization_version: 3\n"
    (repo / "feature_store.yaml").write_text(settings + "online_store: null\noffline_store: {type: file}\n")
    monkeypatch.chdir(tmp_path)
    source = feast.RequestSource(name="r", schema=[feast.Field(name="x", dtype=Float64)])

    @on_demand_feature_view(sources=[source], schema=[feast.Field(name="y", dtype=Float64)])
    def evil(rows):
        return rows.rename(columns={"x": "y"})

    store = feast.FeatureStore(repo_path=str(repo))
    store.apply([evil])
    proto = store.registry.proto()
    udf = proto.on_demand_feature_views[0].spec.feature_transformation.user_defined_function
    udf.body, udf.body_text = dill.dumps(_Runs(str(marker))), "not Python, which Feast would prefer"
    (repo / "registry.db").write_bytes(proto.SerializeToString())
    start = _logged(tmp_path / "log", Ref("feast", "feature_view", "p/weather@0123456789abcdef", at=str(repo)))
    [link] = trace(start, timeout=60).upstream
    assert link.bucket == "inaccessible" and "names this place" in link.reason and not marker.exists()
    [link] = trace(start, timeout=60, allow=[str(repo)]).upstream
    assert link.bucket == "deleted" and not marker.exists(), "nor for a look at the names, where it is asked"
    with pytest.raises(TypeError):  # what is unpickled is not a function
        feast.FeatureStore(repo_path=str(repo)).registry.list_all_feature_views("p")
    assert marker.exists(), "this is what Feast itself does"


class _Runs:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)
