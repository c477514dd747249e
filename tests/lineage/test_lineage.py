"""A trace reaches the raw data and the commit, whatever has been lost on the way."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dagster_mlops import cli
from dagster_mlops.core.commands import COMPLETE, INCOMPLETE, USAGE
from dagster_mlops.errors import MissingExtraError, NotFoundError
from dagster_mlops.git import GitTool
from dagster_mlops.lineage import EventLog, Link, status, trace
from dagster_mlops.lineage.chain.predictions import find_prediction, prediction_logs
from dagster_mlops.lineage.chain.sources import Tools
from dagster_mlops.lineage.chain.tree import chain_tree
from dagster_mlops.provenance import (
    Accessible,
    Commit,
    Dataset,
    Deleted,
    Deployment,
    FeatureView,
    Inaccessible,
    ModelVersion,
    Package,
    Prediction,
    Record,
    Ref,
    Report,
    TrainingRun,
    TrainingSet,
)

MONTHS = [f"2013-{month:02}" for month in range(1, 7)]
URI = "sqlite:///mlflow.db"

COMMIT = Commit(sha="c0ffee" * 6, repo="/code", subject="Train on six months")
RAW = [
    Dataset(
        path=f"raw/flights/{month}.parquet",
        md5=f"{n:032x}",
        repo="/data",
        rows=1000 + n,
        bytes=10_000,
        upstream=(COMMIT.ref,),
        dagster_asset="raw/flights",
        dagster_partition=month,
    )
    for n, month in enumerate(MONTHS)
]
VIEWS = [
    FeatureView(
        name=name,
        project="delay",
        repo="/features",
        version="f1",
        upstream=tuple(r.ref for r in RAW),
        dagster_asset=name,
    )
    for name in ("origin_weather", "carrier_punctuality")
]
TRAINING_SET = TrainingSet(
    feature_service="arrival_delay",
    project="delay",
    repo="/features",
    registry_hash="ab" * 16,
    entity_hash="cd" * 16,
    rows=6015,
    upstream=tuple(view.ref for view in VIEWS),
    dagster_asset="training_set",
)
RUN = TrainingRun(
    run_id="feed" * 8,
    tracking_uri=URI,
    metrics={"auc": 0.71},
    code_commit=COMMIT.sha,
    upstream=(TRAINING_SET.ref, COMMIT.ref),
    dagster_asset="arrival_delay_model",
)
VERSION = ModelVersion(
    name="arrival_delay",
    version="3",
    run_id=RUN.run_id,
    tracking_uri=URI,
    metrics=RUN.metrics,
    datasets={record.path: record.md5 for record in RAW},
    upstream=(RUN.ref,),
    dagster_asset="arrival_delay_model",
)
BENTO = Package(
    tag="arrival_delay:3",
    home="/bentos",
    model_name="arrival_delay",
    model_version="3",
    run_id=RUN.run_id,
    datasets=VERSION.datasets,
    upstream=(VERSION.ref,),
    dagster_asset="bento",
)
LIVE = Deployment(
    name="arrival_delay",
    id="d1",
    package=BENTO.tag,
    model_name="arrival_delay",
    model_version="3",
    url="http://127.0.0.1:9",
    state_dir="/state",
    prediction_log="/state/predictions",
    upstream=(BENTO.ref,),
    dagster_asset="deployment",
)
PREDICTION = Prediction(
    request_id="req-1",
    timestamp="2013-07-01T10:00:00+00:00",
    prediction_log=LIVE.prediction_log,
    deployment="arrival_delay/d1",
    package=BENTO.tag,
    model_name="arrival_delay",
    model_version="3",
    inputs={"carrier": "UA", "temp": 21.5},
    output=0.31,
    upstream=(LIVE.ref,),
)
PLACES = ["/data", "/code", "/features", "/bentos", "/state", URI]
CHAIN = [PREDICTION, LIVE, BENTO, VERSION, RUN, TRAINING_SET, *VIEWS, *RAW, COMMIT]


class Shelf:
    """A tool of a third party: it holds records, and forgets those that a test takes away."""

    def __init__(self, *records: Record):
        self.records = {record.ref: record for record in records}
        self.asked: list[Ref] = []

    def resolve(self, ref):
        self.asked.append(ref)
        record = self.records.get(ref)
        return Accessible(record) if record else Deleted(f"{ref.id} is gone.")


class Broken:
    def __init__(self, answer):
        self.answer = answer

    def resolve(self, ref):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def shelves():
    return {tool: Shelf(*(r for r in CHAIN if r.tool == tool)) for tool in {record.tool for record in CHAIN}}


def _report(instance: dg.DagsterInstance, record: Record, asset: str = "", partition: str = "") -> None:
    key = dg.AssetKey((asset or record.dagster_asset or record.role).split("/"))
    partition = partition or record.dagster_partition
    metadata = record.to_metadata()
    instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=metadata, partition=partition or None))


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        for record in reversed(CHAIN[1:-1]):
            _report(instance, record)
        yield instance


def _buckets(chain: Link) -> dict[str, str]:
    return {str(link.ref): link.bucket for link in chain.walk()}


def _reached(chain: Link) -> set[Ref]:
    return {link.ref for link in chain.walk()}


def test_a_prediction_is_traced_to_every_raw_file_and_the_commit(shelves):
    chain = trace(PREDICTION.ref, tools=shelves, allow=PLACES)
    assert chain.complete
    assert _reached(chain) == {record.ref for record in CHAIN}
    assert [record.md5 for record in chain.find(Dataset)] == [record.md5 for record in RAW]


def test_each_thing_is_asked_once_however_often_it_is_named(shelves):
    trace(PREDICTION.ref, tools=shelves, allow=PLACES)
    asked = [ref for shelf in shelves.values() for ref in shelf.asked]
    assert len(asked) == len(set(asked)) == len(CHAIN)


def test_the_chain_goes_on_below_a_deleted_run_with_what_dagster_knows(shelves, instance):
    del shelves["mlflow"].records[RUN.ref]
    chain = trace(PREDICTION.ref, tools=shelves, instance=instance)
    links = {link.ref: link for link in chain.walk()}
    assert (links[RUN.ref].bucket, links[RUN.ref].source, links[RUN.ref].record) == ("deleted", "dagster", RUN)
    assert _reached(chain) == {record.ref for record in CHAIN}
    assert not chain.complete


def test_a_tool_that_still_knows_the_deleted_thing_is_believed(shelves):
    shelves["mlflow"].resolve = lambda ref: Deleted("soft-deleted", {RUN.ref: RUN, VERSION.ref: VERSION}[ref])
    chain = trace(PREDICTION.ref, tools=shelves, allow=PLACES)
    links = {link.ref: link for link in chain.walk()}
    assert (links[RUN.ref].bucket, links[RUN.ref].source) == ("deleted", "tool")
    assert COMMIT.ref in links


def test_without_dagster_the_facts_on_the_bento_lead_past_a_lost_registry(shelves):
    shelves["mlflow"] = Shelf()
    chain = trace(PREDICTION.ref, tools=shelves, allow=PLACES)
    links = {link.ref: link for link in chain.walk()}
    run = links[RUN.ref]
    assert (run.bucket, run.source) == ("deleted", "carried")
    datasets = {(record.path, record.md5) for record in chain.find(Dataset)}
    assert datasets == {(record.path, record.md5) for record in RAW}


def test_dagster_alone_gives_the_whole_chain_when_no_tool_is_installed(instance):
    chain = trace(LIVE.ref, tools={}, instance=instance)
    assert _reached(chain) == {record.ref for record in CHAIN[1:]}
    assert set(_buckets(chain).values()) == {"inaccessible"}
    assert {link.source for link in chain.walk() if link.ref != COMMIT.ref} == {"dagster"}


def test_a_prediction_alone_leads_on_through_dagster_when_its_deployment_is_lost(shelves, instance):
    shelves["bentoml"].records = {PREDICTION.ref: PREDICTION}
    with dg.DagsterInstance.ephemeral() as other:
        for record in (BENTO, VERSION, RUN):
            _report(other, record)
        chain = trace(PREDICTION.ref, tools=shelves, instance=other)
    links = {link.ref: link for link in chain.walk()}
    assert links[LIVE.ref].source == "carried"
    assert [record.run_id for record in chain.find(TrainingRun)] == [RUN.run_id]


@pytest.mark.parametrize(
    ("answer", "bucket", "reason"),
    [
        (RuntimeError("boom at postgresql://ml:s3cret@db/x"), "faulty", "RuntimeError: boom at postgresql://***@db/x"),
        (ConnectionRefusedError("port 5000"), "inaccessible", "cannot be reached"),
        (MissingExtraError("Run: pip install 'dagster-mlops[mlflow]'"), "inaccessible", "dagster-mlops[mlflow]"),
        (SystemExit(3), "faulty", "SystemExit"),
        (None, "faulty", "returned None"),
        (Inaccessible("server is down"), "inaccessible", "server is down"),
    ],
)
def test_a_tool_that_fails_is_a_finding_and_never_the_end(shelves, instance, answer, bucket, reason):
    shelves["mlflow"] = Broken(answer)
    chain = trace(PREDICTION.ref, tools=shelves, instance=instance)
    links = {link.ref: link for link in chain.walk()}
    assert links[RUN.ref].bucket == bucket and reason in links[RUN.ref].reason
    assert "s3cret" not in json.dumps(chain.to_dict())
    assert COMMIT.ref in links


def test_a_tool_that_hangs_is_waited_for_once(shelves, instance):
    hanging = threading.Event()

    class Hanging:
        def resolve(self, ref):
            hanging.wait(30)

    shelves["mlflow"] = Hanging()
    start = time.monotonic()
    chain = trace(PREDICTION.ref, tools=shelves, instance=instance, timeout=0.3)
    hanging.set()
    assert time.monotonic() - start < 3
    links = {link.ref: link for link in chain.walk()}
    assert "did not answer within 0.3 s" in links[VERSION.ref].reason
    assert links[RUN.ref].bucket == "inaccessible"
    assert COMMIT.ref in links


def test_records_that_name_each_other_end_in_a_fault_rather_than_a_loop():
    one = Dataset(path="one", md5="1", repo="/d")
    two = Dataset(path="two", md5="2", repo="/d", upstream=(one.ref,))
    one = dataclasses.replace(one, upstream=(two.ref,))
    chain = trace(one.ref, tools={"dvc": Shelf(one, two)})
    assert chain.upstream[0].upstream[0].bucket == "faulty"
    assert "dvc:dataset:one@1 → dvc:dataset:two@2 → dvc:dataset:one@1" in chain.upstream[0].upstream[0].reason


def test_a_thing_that_names_itself_is_no_cycle(instance):
    promoted = dataclasses.replace(VERSION, upstream=(VERSION.ref,), aliases=("champion",))
    _report(instance, promoted, asset="champion")
    chain = trace(VERSION.ref, tools={"mlflow": Shelf(RUN)}, instance=instance)
    assert [up.ref for up in chain.upstream] == [RUN.ref]
    assert chain.record == dataclasses.replace(promoted, upstream=(RUN.ref,))


def test_a_chain_of_two_thousand_links_is_no_trouble():
    days = [Dataset(path="d", md5="0", repo="/d")]
    for n in range(1, 2000):
        days.append(Dataset(path="d", md5=str(n), repo="/d", upstream=(days[-1].ref,)))
    chain = trace(days[-1].ref, tools={"dvc": Shelf(*days)})
    assert chain.complete and len(list(chain.walk())) == 2000
    assert len(chain.to_dict()["links"]) == 2000


def test_a_training_set_leads_to_the_windows_it_was_made_from_and_none_after():
    windows = [
        FeatureView(name="weather", project="p", repo="/features", version=f"v{n}", upstream=(RAW[n].ref,))
        for n in range(4)
    ]
    trained = TrainingRun(run_id="r", tracking_uri=URI, upstream=tuple(window.ref for window in windows[:3]))
    with dg.DagsterInstance.ephemeral() as instance:
        for window in windows[:3]:
            _report(instance, window, asset="weather")
        _report(instance, trained, asset="model")
        _report(instance, windows[3], asset="weather")
        tools = {"mlflow": Shelf(trained), "feast": Shelf(*windows), "dvc": Shelf(*RAW)}
        for chain in (trace(trained.ref, tools={}, instance=instance), trace(trained.ref, tools=tools, allow=PLACES)):
            assert [record.version for record in chain.find(FeatureView)] == ["v0", "v1", "v2"]
            assert {link.ref for link in chain.walk() if link.ref.tool == "dvc"} == {raw.ref for raw in RAW[:3]}


def test_an_older_schema_in_the_event_log_is_reported_and_skipped(instance):
    metadata = {"dagster_mlops/dataset": dg.MetadataValue.json({"schema": 99, "kind": "dataset"})}
    instance.report_runless_asset_event(dg.AssetMaterialization("ancient", metadata=metadata))
    events = EventLog(instance)
    assert events.find(RUN.ref)
    assert "schema 99" in events.unreadable[0] and "ancient" in events.unreadable[0]
    assert status(instance).unreadable


# --- git


@pytest.fixture
def repository(tmp_path):
    repo = tmp_path / "code"
    subprocess.run(["git", "init", "-q", str(repo)], check=True)
    (repo / "a.py").write_text("a = 1\n")
    subprocess.run(["git", "-C", str(repo), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(repo), "commit", "-q", "-m", "Begin"], check=True)
    head = subprocess.run(["git", "-C", str(repo), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return repo, head.stdout.strip()


def test_a_commit_answers_with_its_subject(repository):
    repo, sha = repository
    answer = GitTool().resolve(Ref("git", "commit", sha, at=str(repo)))
    assert isinstance(answer, Accessible) and isinstance(answer.record, Commit)
    assert (answer.record.sha, answer.record.subject, answer.record.author) == (sha, "Begin", "test")


def test_a_commit_that_was_rewritten_is_deleted(repository):
    repo, _ = repository
    answer = GitTool().resolve(Ref("git", "commit", "0123456789" * 4, at=str(repo)))
    assert isinstance(answer, Deleted) and "012345678901" in answer.reason


def test_a_shallow_clone_cannot_tell(repository, tmp_path):
    repo, sha = repository
    subprocess.run(["git", "-C", str(repo), "commit", "-q", "--allow-empty", "-m", "Next"], check=True)
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{repo}", str(shallow)], check=True)
    answer = GitTool().resolve(Ref("git", "commit", sha, at=str(shallow)))
    assert isinstance(answer, Inaccessible) and "git fetch --unshallow" in answer.reason


def test_a_repository_that_is_gone_is_inaccessible(tmp_path):
    gone = GitTool().resolve(Ref("git", "commit", "abcdef0", at=str(tmp_path / "gone")))
    (tmp_path / "plain").mkdir()
    plain = GitTool().resolve(Ref("git", "commit", "abcdef0", at=str(tmp_path / "plain")))
    assert isinstance(gone, Inaccessible) and "not there" in gone.reason
    assert isinstance(plain, Inaccessible) and "not a git repository" in plain.reason


def test_what_is_no_hash_never_reaches_git(repository):
    answer = GitTool().resolve(Ref("git", "commit", "--output=/tmp/x", at=str(repository[0])))
    assert answer.bucket == "faulty"


# --- what people read


def _text(chain: Link, width: int = 80) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(chain_tree(chain))
    return capture.get()


def test_the_tree_shows_every_kind_in_eighty_columns(shelves):
    text = _text(trace(PREDICTION.ref, tools=shelves, allow=PLACES))
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in (
        "req-1",
        "output 0.31",
        "arrival_delay/d1",
        "auc=0.71",
        "6,015 rows",
        "origin_weather",
        "Train on six",
    ):
        assert word in text
    assert "complete: all 15 links" in text


def test_many_siblings_share_a_line_in_the_tree_but_not_in_json(shelves):
    chain = trace(PREDICTION.ref, tools=shelves, allow=PLACES)
    assert "dataset × 6: raw/flights/2013-01.parquet … raw/flights/2013-06.parquet" in _text(chain, 120)
    assert "6,015 rows" in _text(chain)
    assert sum(link["ref"]["role"] == "dataset" for link in chain.to_dict()["links"]) == 6


def test_a_lost_sibling_stands_out_of_its_group(shelves):
    del shelves["dvc"].records[RAW[5].ref]
    text = _text(trace(PREDICTION.ref, tools=shelves, allow=PLACES), 120)
    assert "dataset × 5" in text
    assert "✗ dataset raw/flights/2013-06.parquet" in text and "DELETED" in text and "is gone." in text


def test_a_broken_chain_says_so_in_the_last_line(shelves):
    shelves["mlflow"] = Broken(Inaccessible("server is down"))
    text = _text(trace(PREDICTION.ref, tools=shelves, allow=PLACES), 120)
    assert "INACCESSIBLE" in text and "server is down" in text
    assert "2 inaccessible" in text.splitlines()[-1]


# --- status


def _world(instance: dg.DagsterInstance, deployment: Deployment, drifted: bool = False) -> None:
    for record in reversed(CHAIN[2:-1]):
        _report(instance, record)

    @dg.asset(name="deployment")
    def deployed() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=deployment.to_metadata())

    @dg.asset_check(asset=deployed, blocking=True)
    def healthy() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.asset_check(asset=deployed)
    def drift() -> dg.AssetCheckResult:
        report = Report(id="2013-07", drift_share=0.4, drifted=("temp",), passed=not drifted)
        severity = dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(passed=not drifted, severity=severity, metadata=report.to_metadata())

    dg.materialize([deployed, healthy, drift], instance=instance)


@pytest.fixture
def port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_status_says_what_is_in_production_on_which_data(port):
    with dg.DagsterInstance.ephemeral() as instance:
        _world(instance, dataclasses.replace(LIVE, url=f"http://127.0.0.1:{port}"), drifted=True)
        now = status(instance)
    [production] = now.production
    assert (production.deployment.id, production.answers) == ("d1", True)
    assert production.model_version and production.model_version.version == "3"
    assert production.metrics == {"auc": 0.71}
    assert {dataset.md5 for dataset in production.datasets} == {record.md5 for record in RAW}
    assert {(check.name, check.verdict) for check in now.checks} == {("healthy", "passed"), ("drift", "warned")}
    assert [report.drift_share for report in now.drift] == [0.4]
    assert now.healthy
    json.dumps(now.to_dict())


def test_a_server_that_does_not_answer_is_not_healthy():
    with dg.DagsterInstance.ephemeral() as instance:
        _world(instance, LIVE)
        now = status(instance)
    assert now.production[0].answers is False
    assert not now.healthy


def test_a_check_that_crashed_does_not_hold(port):
    with dg.DagsterInstance.ephemeral() as instance:
        _world(instance, dataclasses.replace(LIVE, url=f"http://127.0.0.1:{port}"))

        @dg.asset
        def data() -> None: ...

        @dg.asset_check(asset=data)
        def crashing() -> dg.AssetCheckResult:
            raise RuntimeError("the check broke")

        dg.materialize([data, crashing], instance=instance, raise_on_error=False)
        now = status(instance)
    assert {check.name: check.verdict for check in now.checks}["crashing"] == "did not finish"
    assert not now.healthy


def test_an_instance_without_a_deployment_is_empty_but_no_error():
    with dg.DagsterInstance.ephemeral() as instance:
        now = status(instance)
    assert (now.production, now.checks, now.healthy) == ((), (), False)


# --- the command


def test_a_request_is_found_in_the_logs_of_every_deployment_ever(instance, shelves):
    older = dataclasses.replace(LIVE, id="d0", prediction_log="/state/older", stopped="2013-06-01T00:00:00+00:00")
    _report(instance, older)
    logs = prediction_logs(EventLog(instance))
    assert set(logs) == {"/state/predictions", "/state/older"}
    assert find_prediction("req-1", logs, tools=Tools(shelves)) == PREDICTION.ref
    with pytest.raises(NotFoundError) as refusal:
        find_prediction("req-2", logs, tools=Tools(shelves))
    assert "/state/predictions" in str(refusal.value) and "/state/older" in str(refusal.value)


def test_an_unknown_request_is_told_how_much_was_searched(tmp_path, shelves):
    (tmp_path / "2013-07-01.jsonl").write_text('{"request_id": "a"}\n{"request_id": "b"}\n')
    with pytest.raises(NotFoundError, match=r"1 file\(s\) with 40 bytes"):
        find_prediction("c", [str(tmp_path)], tools=Tools(shelves))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A Dagster home with one deployment on record."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        _world(instance, LIVE)
    return folder


def _run(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_trace_takes_a_full_ref_and_fails_when_a_link_is_lost(home):
    result = _run("trace", BENTO.ref, "--at", BENTO.home, "--json", "--dagster-home", home)
    assert result.exit_code == INCOMPLETE, result.output
    chain = json.loads(result.stdout)
    assert chain["complete"] is False
    assert {link["ref"]["role"] for link in chain["links"]} >= {"package", "model_version", "training_run", "dataset"}


def test_trace_of_a_commit_is_complete(repository):
    repo, sha = repository
    result = _run("trace", f"git:commit:{sha}", "--at", repo)
    assert result.exit_code == COMPLETE, result.output
    assert "Begin" in result.stdout and "complete" in result.stdout


def test_trace_of_an_unknown_request_names_the_logs(home):
    result = _run("trace", "req-unknown", "--dagster-home", home)
    assert result.exit_code == USAGE
    assert "/state/predictions" in result.stderr


def test_trace_without_any_log_or_instance_says_what_to_set(monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    result = _run("trace", "req-1")
    assert result.exit_code == USAGE
    assert "DAGSTER_HOME" in result.stderr and "--log" in result.stderr


def test_a_folder_that_is_no_dagster_home_is_not_made_one(tmp_path):
    result = _run("status", "--dagster-home", tmp_path)
    assert result.exit_code == USAGE and "holds no Dagster instance" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_status_shows_production_and_its_checks_on_one_screen(home):
    result = _run("status", "--dagster-home", home)
    assert result.exit_code == INCOMPLETE  # nothing listens on port 9
    for word in ("arrival_delay/d1", "DOES NOT ANSWER", "auc 0.71", "raw/flights", "healthy", "drift"):
        assert word in result.stdout
    assert len(result.stdout.splitlines()) < 30
    assert json.loads(_run("status", "--json", "--dagster-home", home).stdout)["healthy"] is False


def test_help_and_version_do_not_wait_for_dagster():
    program = "import sys; sys.argv = ['dagster-mlops', '--help']\nfrom dagster_mlops.cli import main\n"
    program += "try: main()\nexcept SystemExit: pass\nassert 'dagster' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "trace" in done.stdout and "status" in done.stdout


def test_the_installed_command_runs_in_a_plain_terminal(repository):
    repo, sha = repository
    command = Path(sys.executable).with_name("dagster-mlops")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "80"}
    arguments = [str(command), "trace", f"git:commit:{sha}", "--at", str(repo)]
    done = subprocess.run(arguments, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"\x1b[" not in done.stdout and b"+ commit" in done.stdout


# --- with the tools themselves

BUILD = """
import sys
from pathlib import Path
from dagster_mlops.dvc import DvcResource
from dagster_mlops.provenance import Ref, TrainingRun
import mlflow

root, commit = Path(sys.argv[1]), sys.argv[2]
dvc = DvcResource(repo=str(root / "data"))
dvc.init(remote_url=str(root / "remote"))
(root / "data" / "flights.csv").write_text("id,late\\n1,0\\n")
dataset = dvc.store("flights.csv", rows=1, upstream=(Ref("git", "commit", commit, at=str(root / "code")),))
uri = f"sqlite:///{root / 'mlflow.db'}"
client = mlflow.MlflowClient(uri)
run = client.create_run(client.create_experiment("e", artifact_location=str(root / "artifacts")))
record = TrainingRun(run_id=run.info.run_id, tracking_uri=uri, code_commit=commit, upstream=(dataset.ref,))
client.set_tag(run.info.run_id, "dagster_mlops.record", record.to_json())
client.log_text(run.info.run_id, "a run without artifacts is a damaged one", "note.txt")
client.set_terminated(run.info.run_id)
print(run.info.run_id)
"""


@pytest.mark.thorough
@pytest.mark.slow
def test_the_real_tools_say_deleted_and_inaccessible(repository, tmp_path):
    _, sha = repository
    python = [sys.executable, "-W", "ignore"]
    built = subprocess.run(
        [*python, "-c", BUILD, str(tmp_path), sha], capture_output=True, text=True, timeout=240, check=False
    )
    assert built.returncode == 0, built.stderr
    run_id, uri = built.stdout.split()[-1], f"sqlite:///{tmp_path / 'mlflow.db'}"

    def asked() -> tuple[int, dict[str, tuple[str, str]]]:
        command = [*python, "-m", "dagster_mlops.cli", "trace", f"mlflow:training_run:{run_id}", "--at", uri, "--json"]
        command += ["--allow", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        links = json.loads(done.stdout)["links"]
        return done.returncode, {link["ref"]["role"]: (link["bucket"], link["source"]) for link in links}

    everything = {kind: ("accessible", "tool") for kind in ("training_run", "dataset", "commit")}
    assert asked() == (COMPLETE, everything)
    delete = f"import mlflow; mlflow.MlflowClient({uri!r}).delete_run({run_id!r})"
    subprocess.run([*python, "-c", delete], check=True, capture_output=True, timeout=240)
    (tmp_path / "remote").rename(tmp_path / "remote that is gone")
    lost = {"training_run": ("deleted", "tool"), "dataset": ("inaccessible", "tool")}
    assert asked() == (INCOMPLETE, everything | lost)
