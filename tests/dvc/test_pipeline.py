"""A DVC project with the features that teams use, wrapped as assets and run by DVC for real."""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_mlops.dvc import DvcResource, PipelineComponent, dvc_io_manager, pipeline_assets
from dagster_mlops.dvc.history.comparison import diff
from dagster_mlops.dvc.history.versions import history, restore
from dagster_mlops.dvc.pipeline import stage_asset_spec
from dagster_mlops.dvc.stages.project import Project, Stage, TrackedData, load_project
from dagster_mlops.dvc.stages.run import StageRun
from dagster_mlops.dvc.stages.ui_metadata import metadata
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Accessible, Dataset, Deleted, Ref, records_in
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "2"))
DVC = str(Path(sys.executable).with_name("dvc"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

FILES = {
    "params.yaml": "clean: {rows: 2}\nmodels:\n  cnn: {lr: 0.5}\n  gbm: {lr: 0.25}\n",
    "src/clean.sh": "head -n 2 data/raw.csv > $1\n",
    "dvc.yaml": """
        vars:
        - folder: prepared
        stages:
          clean:
            desc: The first rows.
            cmd:
            - echo clean >> $RUNS
            - sh src/clean.sh ${folder}/clean.csv
            deps: [data/raw.csv, src/clean.sh]
            params: [clean.rows]
            outs: ["${folder}/clean.csv"]
          train:
            foreach: ${models}
            do:
              cmd: >-
                echo train-${key} >> $RUNS
                && cat ${folder}/clean.csv > models/${key}.txt && echo ${item.lr} >> models/${key}.txt
                && echo '{"auc": ${item.lr}, "loss": {"test": 1}}' > metrics/${key}.json
              deps: ["${folder}/clean.csv"]
              params: ["models.${key}.lr"]
              outs: ["models/${key}.txt"]
              metrics:
              - metrics/${key}.json: {cache: false}
          legacy:
            frozen: true
            cmd: echo legacy >> $RUNS && echo old > legacy.txt
            outs: [legacy.txt]
          charts:
            cmd: >-
              echo charts >> $RUNS && printf 'step,acc\\n0,0.1\\n1,0.5\\n' > charts/acc.csv
              && printf 'actual,predicted\\na,a\\na,b\\n' > charts/confusion.csv
              && base64 -d pixel.txt > charts/pixel.png
            deps: [models, pixel.txt, legacy.txt]
            plots:
            - charts/acc.csv: {x: step, y: acc}
            - charts/confusion.csv: {x: actual, y: predicted, template: confusion}
            - charts/pixel.png
    """,
    "pixel.txt": PIXEL,
    "models/.gitkeep": "",
    "prepared/.gitkeep": "",
    "metrics/.gitkeep": "",
    "charts/.gitkeep": "",
    "work/.gitkeep": "",
    "report/dvc.yaml": """
        stages:
          grid:
            matrix: {size: [1, 2], kind: ["b.c"]}
            wdir: ../work
            cmd: >-
              echo grid-${item.size}-${item.kind} >> $RUNS
              && head -c ${item.size} ../models/cnn.txt > ${item.size}${item.kind}.txt
            deps: [../models/cnn.txt]
            outs: ["${item.size}${item.kind}.txt"]
    """,
}


def _sh(folder, *command, check=True):
    return subprocess.run(command, cwd=folder, check=check, capture_output=True, text=True).stdout.strip()


def _git(folder, *arguments):
    return _sh(folder, "git", *arguments)


def _write(folder, files):
    for name, content in files.items():
        file = Path(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(content).lstrip("\n"))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The project of a data team: two dvc.yaml files, a tracked file, a local remote; nothing has run but `legacy`."""
    folder = tmp_path_factory.mktemp("template") / "project"
    DvcResource(repo=str(folder)).init()
    _write(folder, {**FILES, "data/raw.csv": "1\n2\n3\n"})
    _sh(folder, DVC, "add", "-q", "data/raw.csv")
    (folder / "legacy.txt").write_text("old")
    _sh(folder, DVC, "commit", "-q", "-f", "legacy")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "project")
    return folder


@pytest.fixture
def repo(template, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return Path(shutil.copytree(template, tmp_path / "project"))


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def run(repo, instance):
    def materialize(*keys, push=False, commit=False, raise_on_error=True, **options):
        assets = pipeline_assets(repo=repo, **options)
        steps = [asset for asset in assets if asset.is_materializable]
        return dg.materialize(
            assets,
            selection=dg.AssetSelection.assets(*keys) if keys else dg.AssetSelection.assets(*steps),
            resources={"dvc": DvcResource(repo=str(repo), push=push, commit=commit, lock_timeout=20)},
            instance=instance,
            raise_on_error=raise_on_error,
        )

    return materialize


def _runs(repo):
    file = repo.parent / "runs"
    return file.read_text().split() if file.exists() else []


def _facts(result):
    return {
        e.materialization.asset_key.to_user_string(): {k: v.value for k, v in e.materialization.metadata.items()}
        for e in result.get_asset_materialization_events()
    }


def _versions(result):
    return {
        e.materialization.asset_key.to_user_string(): e.materialization.tags["dagster/data_version"]
        for e in result.get_asset_materialization_events()
    }


def _outcomes(result):
    return {key: facts["dvc/outcome"] for key, facts in _facts(result).items()}


def _specs(assets):
    return {spec.key.to_user_string(): spec for asset in assets for spec in asset.specs}


def test_every_stage_is_an_asset_that_depends_on_what_makes_its_inputs(repo):
    specs = _specs(pipeline_assets(repo=repo, group_name="nlp"))
    deps = {key: sorted(dep.asset_key.to_user_string() for dep in spec.deps) for key, spec in specs.items()}
    grid = {f"report/grid/{size}_{kind}": ["train/cnn"] for size in (1, 2) for kind in ("b_c",)}
    assert (
        deps
        == {
            "data/raw_csv": [],
            "clean": ["data/raw_csv"],
            "train/cnn": ["clean"],
            "train/gbm": ["clean"],
            "legacy": [],
            "charts": ["legacy", "train/cnn", "train/gbm"],
        }
        | grid
    )
    assert {spec.group_name for spec in specs.values()} == {"nlp"}
    assert specs["clean"].description == "The first rows."
    assert specs["clean"].metadata["dvc/code"] == ["src/clean.sh"]
    assert specs["train/cnn"].metadata["dvc/params"] == {"params.yaml": {"models.cnn.lr": 0.5}}


def test_the_code_version_moves_with_command_code_and_parameters_of_that_stage_alone(repo):
    def versions():
        return {key: spec.code_version for key, spec in _specs(pipeline_assets(repo=repo)).items()}

    def moved(change):
        before = versions()
        change()
        after = versions()
        return {key for key in before if before[key] != after[key]}

    def replace(file, old, new):
        (repo / file).write_text((repo / file).read_text().replace(old, new))

    assert moved(lambda: replace("src/clean.sh", "head", "tail")) == {"clean"}
    assert moved(lambda: replace("params.yaml", "lr: 0.25", "lr: 0.75")) == {"train/gbm"}
    assert moved(lambda: replace("dvc.yaml", "echo charts", "echo  charts")) == {"charts"}
    assert moved(lambda: (repo / "data/raw.csv").write_text("9\n")) == set()


def test_loading_imports_no_dvc_and_asks_it_only_after_a_change(repo, monkeypatch, cold_python):
    code = f"import sys; from dagster_mlops.dvc import pipeline_assets; pipeline_assets(repo={str(repo)!r})"
    _sh(repo, sys.executable, "-W", "ignore", "-c", f"{code}; assert 'dvc' not in sys.modules, 'imported'")
    before = load_project(repo)

    def asked(*arguments, **options):
        raise AssertionError("DVC was asked again")

    with monkeypatch.context() as quiet:
        quiet.setattr("dagster_mlops.dvc.stages.project._described", asked)
        assert load_project(repo) == before
    (repo / "params.yaml").write_text("clean: {rows: 2}\nmodels: {svm: {lr: 1}}\n")
    assert {s.name for s in load_project(repo).stages if s.name.startswith("train")} == {"train@svm"}
    (repo / "other").mkdir()
    (repo / "other/dvc.yaml").write_text("stages: {late: {cmd: 'true'}}\n")
    assert "other/dvc.yaml:late" in {s.address for s in load_project(repo).stages}


def test_dvc_executes_a_stage_once_and_leaves_what_did_not_change(repo, run):
    keys = ["clean", "train/cnn", "report/grid/1_b_c", "report/grid/2_b_c"]
    first = run(*keys)
    assert _runs(repo) == ["clean", "train-cnn", "grid-1-b.c", "grid-2-b.c"]
    assert set(_outcomes(first).values()) == {"executed"}
    again = run(*keys)
    assert set(_outcomes(again).values()) == {"unchanged"} and len(_runs(repo)) == 4
    assert _versions(again) == _versions(first)
    assert _sh(repo, DVC, "status", "clean", "train@cnn", "report/dvc.yaml") == "Data and pipelines are up to date."


@pytest.mark.thorough
def test_a_subset_runs_alone_and_the_run_cache_is_honoured(repo, run):
    versions = _versions(run("clean"))
    assert _runs(repo) == ["clean"]
    assert versions["clean"] == yaml.safe_load((repo / "dvc.lock").read_text())["stages"]["clean"]["outs"][0]["md5"]
    params = (repo / "params.yaml").read_text()
    run("train/gbm")
    (repo / "params.yaml").write_text(params.replace("0.25", "0.75"))
    other = run("train/gbm")
    (repo / "params.yaml").write_text(params)
    back = run("train/gbm")
    assert _runs(repo) == ["clean", "train-gbm", "train-gbm"]
    assert (_outcomes(other), _outcomes(back)) == ({"train/gbm": "executed"}, {"train/gbm": "restored"})
    assert (repo / "models/gbm.txt").read_text() == "1\n2\n0.25\n"
    assert _outcomes(run("train/gbm", force=True)) == {"train/gbm": "executed"}


@pytest.mark.pixels
def test_parameters_metrics_and_charts_are_facts_on_the_asset(run):
    facts = _facts(run("clean", "train/cnn", "train/gbm", "charts"))
    cnn = facts["train/cnn"]
    assert (cnn["dvc/params/models.cnn.lr"], cnn["dvc/metrics/auc"], cnn["dvc/metrics/loss.test"]) == (0.5, 0.5, 1)
    charts = {key: value for key, value in facts["charts"].items() if key.startswith("dvc/plots/")}
    assert set(charts) == {f"dvc/plots/charts/{name}" for name in ("acc.csv", "confusion.csv", "pixel.png")}
    for chart in charts.values():
        [(kind, picture)] = re.findall(r"data:image/(\w+);base64,(.+)\)", chart)
        assert kind == "png" and base64.b64decode(picture)[:4] == b"\x89PNG" and len(chart) < 60_000
    assert not [key for key in facts["clean"] if key.startswith(("dvc/plots", "dvc/metrics"))]


def test_a_chart_that_cannot_be_drawn_is_a_line_on_the_asset(tmp_path):
    (tmp_path / "large.png").write_bytes(b"no image" * 10_000)
    plots = [
        {"title": "broken", "files": ["large.png"]},
        {"title": "missing", "files": ["none.png"]},
        {"title": "curve", "points": [{"step": 0, "auc": 0.5}, {"step": 1, "auc": object()}], "x": "step", "y": "auc"},
    ]
    run = StageRun(outcome="executed", entry={}, metrics={}, plots=plots, seconds=1.0)
    facts = metadata(Stage(name="train", file="dvc.yaml"), run, [], tmp_path)
    for plot in plots:
        assert f"{plot['title']} is not drawn: " in facts[f"dvc/plots/{plot['title']}"].md_str


def test_each_output_has_a_record_with_the_versions_that_were_read(repo, run):
    result = run("clean", "train/cnn", "train/gbm", "charts", "report/grid/1_b_c", commit=True)
    events = result.get_asset_materialization_events()
    records = {e.materialization.asset_key.to_user_string(): [*records_in(e.materialization.metadata)] for e in events}
    clean, cnn, metrics = records["clean"][0], *records["train/cnn"]
    assert isinstance(clean, Dataset) and isinstance(cnn, Dataset) and isinstance(metrics, Dataset)
    assert [clean.path, cnn.path, metrics.path] == ["prepared/clean.csv", "models/cnn.txt", "metrics/cnn.json"]
    raw = load_yaml(repo / "data/raw.csv.dvc")["outs"][0]["md5"]
    assert Ref("dvc", "dataset", f"data/raw.csv@{raw}", at=str(repo)) in clean.upstream
    assert clean.ref in cnn.upstream and cnn.code_commit and cnn.dagster_run_id == result.run_id
    [grid] = records["report/grid/1_b_c"]
    assert isinstance(grid, Dataset) and grid.path == "work/1b.c.txt"
    # A folder is an input of `charts`: what made the files in it is upstream.
    assert {cnn.ref, records["train/gbm"][0].ref} <= set(records["charts"][0].upstream)
    for found in (clean, cnn, grid):
        assert isinstance(DvcTool().resolve(found.ref), Accessible)
    gone = Ref("dvc", "dataset", f"models/cnn.txt@{'0' * 32}", at=str(repo))
    assert isinstance(DvcTool().resolve(gone), Deleted)


def load_yaml(file):
    return yaml.safe_load(file.read_text())


def test_tracked_data_and_frozen_stages_are_observed_and_never_run(repo, instance):
    [observed] = [asset for asset in pipeline_assets(repo=repo) if not asset.is_materializable]
    defs = dg.Definitions(assets=[observed], resources={"dvc": DvcResource(repo=str(repo))})
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance)
    versions = {
        e.asset_observation_data.asset_observation.asset_key.to_user_string(): (
            e.asset_observation_data.asset_observation.tags["dagster/data_version"]
        )
        for e in result.get_asset_observation_events()
    }
    assert versions == {
        "data/raw_csv": load_yaml(repo / "data/raw.csv.dvc")["outs"][0]["md5"],
        "legacy": load_yaml(repo / "dvc.lock")["stages"]["legacy"]["outs"][0]["md5"],
    }
    assert _runs(repo) == []
    assert pipeline_assets(repo=repo, observe_data=False)[0].is_materializable


def test_a_failing_command_shows_itself_and_its_last_lines(repo, run):
    secret = "echo 'token=Zq7xK2 ```'; "
    (repo / "src/clean.sh").write_text(f"{secret}echo on the way; echo no memory left >&2; exit 3\n")
    result = run("clean", "train/cnn", raise_on_error=False)
    [event] = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert "sh src/clean.sh prepared/clean.csv" in failure.description
    assert "no memory left" in failure.description
    output = failure.metadata["dvc/output"].value
    assert "on the way\nno memory left" in output and "Zq7xK2" not in output
    assert output.startswith("````\n") and output.endswith("\n````")  # a fence that the output does not end
    assert _runs(repo) == ["clean"] and not result.get_asset_materialization_events()
    (repo / "src/clean.sh").write_text(FILES["src/clean.sh"])
    assert set(_outcomes(run("clean", "train/cnn"))) == {"clean", "train/cnn"}


def test_what_dvc_refuses_is_not_retried(repo, run):
    with pytest.raises(dg.Failure, match="if data is missing") as refused:
        run("train/cnn", retry_policy=dg.RetryPolicy(max_retries=3))
    assert not refused.value.allow_retries and _runs(repo) == []


def test_a_commit_holds_the_stage_and_none_of_the_users_work(repo, run):
    (repo / "staged.txt").write_text("mine")
    _git(repo, "add", "staged.txt")
    (repo / "params.yaml").write_text((repo / "params.yaml").read_text() + "# mine\n")
    status = _git(repo, "status", "--short")
    run("clean", "train/cnn", commit=True)
    assert _git(repo, "log", "--format=%s").splitlines()[:2] == ["Run train@cnn", "Run clean"]
    assert _git(repo, "show", "--format=", "--name-only", "HEAD").splitlines() == [
        "dvc.lock",
        "metrics/cnn.json",
        "models/.gitignore",
    ]
    committed = yaml.safe_load(_git(repo, "show", "HEAD~1:dvc.lock"))["stages"]
    assert set(committed) == {"legacy", "clean"}
    assert _git(repo, "status", "--short") == status
    head = _git(repo, "rev-parse", "HEAD")
    run("clean", "train/cnn", commit=True)
    assert _git(repo, "rev-parse", "HEAD") == head


def test_the_output_of_a_stage_has_versions_to_list_compare_load_and_restore(repo, run, caplog):
    dvc = DvcResource(repo=str(repo), push=False)
    run("clean", commit=True)
    _git(repo, "tag", "v1")
    (repo / "params.yaml").write_text((repo / "params.yaml").read_text().replace("rows: 2", "rows: 3"))
    (repo / "src/clean.sh").write_text("head -n 3 data/raw.csv > $1\n")
    run("clean", commit=True)
    path = "prepared/clean.csv"
    now, then = dvc.data_version(path), dvc.data_version(path, rev="v1")
    assert [version.dataset.md5 for version in history(dvc, path)] == [now, then] and now != then
    assert dvc.revision(path, rev="v1") == _git(repo, "rev-parse", "v1")
    assert len(dvc.load(path, str, rev="v1").splitlines()) == 2 and len(dvc.load(path, str).splitlines()) == 3
    delta = diff(dvc, path).bytes_delta
    assert delta and delta > 0
    head = _git(repo, "rev-parse", "HEAD")
    record = restore(dvc, path, "v1")
    assert record.md5 == then and record.rev == "" and _git(repo, "rev-parse", "HEAD") == head
    assert len((repo / path).read_text().splitlines()) == 2 and not (repo / f"{path}.dvc").exists()
    assert f"lies in the workspace at {then}, while dvc.lock says {now}" in caplog.text
    assert path in _sh(repo, DVC, "status") and now in dvc.data_version(path)
    (repo / path).write_text("by hand")
    with pytest.raises(DatasetError, match="was changed since it was last stored"):
        restore(dvc, path, now)
    assert restore(dvc, path, now, force=True).md5 == now


def test_a_fresh_clone_fetches_and_executes_nothing(repo, run, tmp_path, instance):
    DvcResource(repo=str(repo)).init(remote_url=str(tmp_path / "remote"))
    _sh(repo, DVC, "push", "-q", "data/raw.csv")
    first = _versions(run("clean", "train/cnn", push=True, commit=True))
    assert len([file for file in (tmp_path / "remote").rglob("*") if file.is_file()]) == 3  # metrics are git's
    _git(tmp_path, "clone", "-q", str(repo), "clone")
    clone = tmp_path / "clone"
    executed = len(_runs(repo))
    result = dg.materialize(
        pipeline_assets(repo=clone),
        selection=dg.AssetSelection.assets("clean", "train/cnn"),
        resources={"dvc": DvcResource(repo=str(clone), remote_url=str(tmp_path / "remote"), commit=False)},
        instance=instance,
    )
    assert _versions(result) == first and len(_runs(repo)) == executed
    assert (clone / "models/cnn.txt").read_text() == "1\n2\n0.5\n"


SLOW = """
stages:
  slow:
    cmd: echo begin >> $RUNS && echo half > slow.txt && sleep ${seconds} && echo whole >> slow.txt && echo end >> $RUNS
    outs: [slow.txt]
  other:
    cmd: echo other >> $RUNS && echo 1 > other.txt
    outs: [other.txt]
vars: [{seconds: 1.0}]
"""

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import dagster as dg
from dagster_mlops.dvc import DvcResource, pipeline_assets
repo, *keys = sys.argv[1:]
resources = {"dvc": DvcResource(repo=repo, push=False, lock_timeout=30)}
result = dg.materialize(pipeline_assets(repo=repo), selection=keys, resources=resources)
sys.exit(not result.success)
"""


def _process(repo, *keys):
    command = [sys.executable, "-c", SCRIPT, str(repo), *keys]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def slow(repo):
    (repo / "dvc.yaml").write_text(SLOW)
    (repo / "report/dvc.yaml").unlink()
    (repo / "dvc.lock").unlink()
    _git(repo, "commit", "-qam", "slow")
    return repo


def test_a_killed_step_takes_its_command_along_and_the_next_run_finishes(slow, run):
    load_project(slow)
    # From before DVC starts to after the commit.
    delays = [0.0, 0.3, 0.9, 1.2, *(i * 2.0 / KILLS for i in range(KILLS))][:KILLS]
    for attempt, delay in enumerate(delays):
        seconds = f"{1.001 + attempt / 1000:.3f}".rstrip("0")
        (slow / "dvc.yaml").write_text(SLOW.replace("1.0", seconds))
        seen = len(_runs(slow))
        process = _process(slow, "slow")
        _until(lambda seen=seen: len(_runs(slow)) > seen)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = run("slow", commit=True)
        assert (slow / "slow.txt").read_text() == "half\nwhole\n"
        assert _outcomes(done)["slow"] in ("executed", "restored", "unchanged")
        assert _outcomes(run("slow", commit=True)) == {"slow": "unchanged"}
        assert yaml.safe_load(_git(slow, "show", "HEAD:dvc.lock"))["stages"]["slow"]["cmd"].count(f"sleep {seconds}")
        assert _sh(slow, "pgrep", "-f", f"sleep {seconds}$", check=False) == ""


@pytest.mark.thorough
def test_stages_run_in_parallel_unless_they_make_the_same_thing(slow):
    first = _process(slow, "slow")
    _until(lambda: "begin" in _runs(slow))
    same, other = _process(slow, "slow"), _process(slow, "other")
    assert [process.wait(60) for process in (other, same, first)] == [0, 0, 0]
    runs = _runs(slow)
    assert runs.count("begin") == runs.count("end") == 1  # the second one waited, and found it done
    assert runs.count("other") == 1
    assert set(yaml.safe_load(_git(slow, "show", "HEAD:dvc.lock"))["stages"]) == {"slow", "other"}


def test_a_run_that_waits_too_long_names_who_holds_the_stage(slow, instance):
    (slow / "dvc.yaml").write_text(SLOW.replace("1.0", "8"))
    first = _process(slow, "slow")
    try:
        _until(lambda: "begin" in _runs(slow))
        resources = {"dvc": DvcResource(repo=str(slow), push=False, lock_timeout=0.5)}
        with pytest.raises(DatasetError, match=r"(?s)another DVC process: .*PID \d+"):
            dg.materialize(pipeline_assets(repo=slow), selection=["slow"], resources=resources, instance=instance)
    finally:
        first.kill()
        first.wait()


def test_a_lock_file_that_was_cut_off_starts_again_from_gits_copy(repo, run):
    first = _versions(run("clean", "train/cnn", commit=True))
    whole = (repo / "dvc.lock").read_text()
    for kept in (0, len(whole) // 3, len(whole) // 2 + 1):
        (repo / "dvc.lock").write_text(whole[:kept])
        (repo / ".dvc/tmp/rwlock").write_text('{"write": {'[:kept])
        again = run("clean", "train/cnn", commit=True)
        assert _versions(again) == first
        assert kept or set(_outcomes(again).values()) == {"unchanged"}  # a part may be valid YAML, and is then redone


def test_an_asset_reads_the_version_that_a_stage_made(repo, instance):
    @dg.asset(ins={"model": dg.AssetIn(["train", "cnn"], input_manager_key="dvc_io_manager")})
    def words(model: str) -> int:
        return len(model.split())

    resources = {"dvc": DvcResource(repo=str(repo), push=False, commit=False), "dvc_io_manager": dvc_io_manager}
    assets = [*pipeline_assets(repo=repo), words]
    assert dg.materialize(assets, selection=["clean", "train/cnn"], resources=resources, instance=instance).success
    (repo / "models/cnn.txt").unlink()  # the version is in DVC's cache
    result = dg.materialize(assets, selection=[words], resources=resources, instance=instance)
    assert result.output_for_node("words") == 3


@pytest.mark.thorough
def test_one_step_per_stage_keeps_the_order(repo, run):
    result = run("clean", "train/cnn", "train/gbm", step_per_stage=True)
    assert {e.step_key for e in result.get_step_success_events()} == {
        f"dvc_pipeline__{name}" for name in ("clean", "train__cnn", "train__gbm")
    }
    assert _runs(repo)[0] == "clean"


def test_stages_are_chosen_by_pattern_and_translated_in_one_place(repo):
    def spec(item):
        made = stage_asset_spec(item)
        named = made.replace_attributes(key=made.key.with_prefix("team"), owners=["team:nlp"])
        return named.merge_attributes(deps=["seed"]) if isinstance(item, Stage) and item.name == "clean" else named

    assets = pipeline_assets(repo=repo, stages=["train@*", "clean"], get_asset_spec=spec, observe_data=False)
    specs = _specs(assets)
    assert set(specs) == {"team/clean", "team/train/cnn", "team/train/gbm"}
    assert {d.asset_key.to_user_string() for d in specs["team/clean"].deps} == {"seed", "team/data/raw_csv"}
    with pytest.raises(DatasetError, match=r"No stage of .* matches 'trian'. It has: .*train@cnn"):
        pipeline_assets(repo=repo, stages=["trian"])
    with pytest.raises(DatasetError, match=r"same asset key: .*train@cnn and .*train@gbm"):
        pipeline_assets(
            repo=repo, get_asset_spec=lambda item: dg.AssetSpec(re.sub("@.*|/.*", "", getattr(item, "name", "d")))
        )


def test_a_project_that_cannot_be_read_says_why(repo, tmp_path):
    (repo / "dvc.yaml").write_text("stages: {broken: {cmd: x, outs: ['${nowhere}']}}\n")
    with pytest.raises(DatasetError, match=r"DVC cannot read the project .*nowhere"):
        pipeline_assets(repo=repo)
    with pytest.raises(DatasetError, match=r"is not a DVC repository"):
        pipeline_assets(repo=tmp_path)


def test_the_component_wraps_a_project_in_yaml(repo):
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=PipelineComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.dvc.PipelineComponent",
                "attributes": {
                    "repo": str(repo),
                    "stages": ["clean"],
                    "group_name": "nlp",
                    "push": False,
                    "commit": False,
                    "translation": {"metadata": {"source": "{{ item.file }}"}, "owners": ["team:nlp"]},
                },
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
            assert isinstance(component, PipelineComponent)
            [spec] = [spec for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey("clean")]
            assert (spec.group_name, spec.metadata["source"], spec.owners) == ("nlp", "dvc.yaml", ["team:nlp"])
            with dg.instance_for_test() as instance:
                job = defs.resolve_implicit_global_asset_job_def()
                assert job.execute_in_process(instance=instance, asset_selection=[spec.key]).success
    assert _runs(repo) == ["clean"]


class TeamPipeline(PipelineComponent):
    def get_asset_spec(self, item):
        return super().get_asset_spec(item).replace_attributes(owners=["team:nlp"])


def test_a_subclass_of_the_component_translates_in_python(repo):
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=TeamPipeline,
            defs_yaml_contents={
                "type": f"{TeamPipeline.__module__}.TeamPipeline",
                "attributes": {"repo": str(repo), "key_prefix": ["nlp"], "observe_data": False, "step_per_stage": True},
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
            assert specs["nlp/train/cnn"].owners == ["team:nlp"]
            assert [dep.asset_key.to_user_string() for dep in specs["nlp/train/cnn"].deps] == ["nlp/clean"]


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1).filter(lambda name: name.strip("/.")))
def test_any_name_of_a_stage_gives_a_key_that_dagster_takes(name):
    key = stage_asset_spec(Stage(name=name, file="dvc.yaml")).key
    assert re.fullmatch(r"[A-Za-z0-9_]+", key.to_python_identifier())


def test_the_examples_of_the_page_load(repo):
    page = Path(__file__).parents[2].joinpath("docs", "dvc_pipelines.md").read_text()
    page = page.replace("/data/get-started", str(repo))
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert dg.AssetKey(["nlp", "train", "cnn"]) in {key for asset in names["assets"] for key in asset.keys}
    names["defs"].resolve_implicit_global_asset_job_def()
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(component_cls=PipelineComponent, defs_yaml_contents=yaml.safe_load(block))
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [clean] = [spec for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey("clean")]
            assert clean.owners == ["team:nlp"] and clean.group_name == "nlp"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "a0", "a-", "b"]), min_size=1, max_size=3).map("/".join), min_size=1))
def test_what_makes_a_path_is_found_as_by_comparing_all_paths(paths):
    data = tuple(TrackedData(path=path, file=f"{path}.dvc") for path in dict.fromkeys(paths[1:]))
    made = Project(Path("/"), (), data).makers(paths[0])
    nested = [d for d in data if f"{d.path}/".startswith(f"{paths[0]}/") or f"{paths[0]}/".startswith(f"{d.path}/")]
    assert sorted(d.file for d in made) == sorted(d.file for d in nested)
