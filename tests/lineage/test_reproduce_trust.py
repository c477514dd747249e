"""A record is data that others can write: what it may make a rerun do, and whose code a schedule runs."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.core.places import ALLOW
from dagster_mlops.core.run_files import DIFF, KEPT, STEP, SYSTEM, files_hash, sha256_of
from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.chain.sources import EventLog, Tools
from dagster_mlops.lineage.chain.walk import Link
from dagster_mlops.lineage.reproduction.code import check_out, code_ingredients, find_repository, submodule
from dagster_mlops.lineage.reproduction.comparison import explain
from dagster_mlops.lineage.reproduction.environment import child_variables, install, names_not_passed
from dagster_mlops.lineage.reproduction.recipe import Recipe, find_recipe
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.lineage.reproduction.tracked import restore_tracked
from dagster_mlops.lineage.reproduction.trust import requirements_problem, safe_step, step_problem, switches
from dagster_mlops.lineage.reproduction.whose import refuse_unknown_code, whose_code, whose_packages
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.provenance import Accessible, ModelVersion, Ref, TrainingRun
from tests.support import known_warnings
from tests.support.answers import Answers
from tests.support.training_project import PIPELINE, Project

pytestmark = [*known_warnings.MLFLOW]

STEP_FACTS: dict[str, Any] = {"asset": "model", "partition": "", "reads": [], "location": {"module": "shop.defs"}}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text("x = 1\n")
    (folder / "requirements.lock").write_text("--index-url https://packages.example.com/simple\nnumpy==2.3.0\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "First change")
    return folder


def made(
    run: TrainingRun, files: dict[str, bytes], *, repo: Path | None = None, events: EventLog | None = None
) -> Recipe:
    return find_recipe(
        run.run_id,
        at=run.tracking_uri,
        repo=repo,
        tools=Tools({"mlflow": Answers(Accessible(run), files)}),
        events=events,
    )


def run_of(files: dict[str, bytes], **facts: Any) -> TrainingRun:
    hashed = files_hash({name: sha256_of(content) for name, content in files.items()})
    return TrainingRun(
        **{"run_id": "0" * 32, "tracking_uri": "sqlite:///m.db", "python": "3.11.7", "files_hash": hashed, **facts}
    )


def buckets(recipe: Recipe, kind: str) -> dict[str, str]:
    return {part.name: part.bucket for part in recipe.ingredients if part.kind == kind}


# Files of a run


FILES = {STEP: json.dumps(STEP_FACTS).encode(), SYSTEM: b'{"environment": {"OMP_NUM_THREADS": "1"}}'}


@pytest.mark.parametrize(
    "changed",
    [
        {SYSTEM: b'{"environment": {"OMP_NUM_THREADS": "2"}}'},
        {STEP: json.dumps({**STEP_FACTS, "config": {"rows": 1}}).encode()},
        {"trial.json": b'{"number": 3, "params": {}}'},
        {DIFF: b"diff --git a/train.py b/train.py\n"},
    ],
)
def test_a_file_that_was_changed_or_added_in_the_artifact_store_is_noticed(changed):
    run = run_of(FILES)
    assert "files in code/" not in buckets(made(run, FILES), "run")
    recipe = made(run, {**FILES, **changed})
    assert buckets(recipe, "run")["files in code/"] == "faulty" and not recipe.complete


def test_a_file_that_no_rerun_reads_is_the_trainings_own():
    run = run_of(FILES)
    recipe = made(run, {**FILES, "notes.md": b"of the training itself"})
    assert "files in code/" not in buckets(recipe, "run") and recipe.files.keys() == FILES.keys()


def test_a_run_without_a_hash_of_its_files_runs_and_its_verdict_says_so():
    run = dataclasses.replace(run_of(FILES), files_hash="")
    recipe = made(run, FILES)
    [files] = [part for part in recipe.unknown if part.kind == "run"]
    assert not files.needed and "artifact store" in files.reason


def test_what_dagsters_event_log_has_is_a_second_witness():
    run = run_of(FILES)
    other = {**FILES, SYSTEM: b'{"environment": {"OMP_NUM_THREADS": "2"}}'}
    forged = run_of(other)

    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("model", metadata=run.to_metadata()))
        events = EventLog(instance)
        assert "record" not in buckets(made(run, FILES, events=events), "run")
        for written in (forged, dataclasses.replace(run, files_hash=""), dataclasses.replace(run, code_commit="1a2b")):
            recipe = made(written, other, events=events)
            assert buckets(recipe, "run")["record"] == "faulty" and not recipe.complete
        assert made(run, FILES, events=events).version is None
        version = ModelVersion(
            name="delay", version="1", run_id=run.run_id, tracking_uri=run.tracking_uri, sha256="1a2b"
        )
        instance.report_runless_asset_event(dg.AssetMaterialization("model", metadata=version.to_metadata()))
        assert made(run, FILES, events=EventLog(instance)).version == version, "has the hash of the model"


# Variables


def test_the_recorded_machine_sets_only_the_variables_that_a_training_keeps():
    recorded = {
        "OMP_NUM_THREADS": "4",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONPATH": "/tmp/evil",
        "LD_PRELOAD": "/tmp/evil.so",
        "PYTHONHASHSEED": "0\nLD_PRELOAD=/tmp/evil.so",
        "CUDA_VISIBLE_DEVICES": ["0"],
        "DAGSTER_HOME": "/srv/dagster",
        "TZ": "Europe/Berlin",
    }
    kept = {"OMP_NUM_THREADS": "4", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TZ": "Europe/Berlin"}
    assert switches({"environment": recorded}) == kept
    assert all(switches({"environment": {"TZ": file}}) == {} for file in ("/tmp/evil", ":/tmp/evil", "Europe/../evil"))
    assert switches({"environment": ["PYTHONPATH=/tmp/evil"]}) == {} == switches({})


def test_a_training_sees_no_secrets_of_the_caller_but_those_that_he_names(monkeypatch):
    secrets = (
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_TOKEN",
        "SSH_AUTH_SOCK",
        "GITHUB_TOKEN",
        "DB_URL",
        "PYTHONPATH",
    )
    for name in secrets:
        monkeypatch.setenv(name, "s3cret")
    seen = child_variables()
    assert not seen.keys() & set(secrets) and {"PATH", "HOME"} & os.environ.keys() <= seen.keys()
    named = child_variables(["AWS_*", "DB_URL"])
    assert set(secrets) & named.keys() == {"AWS_SECRET_ACCESS_KEY", "DB_URL"}
    assert "PYTHONPATH" not in child_variables(["*"]), "it would replace the recorded code"
    assert names_not_passed(["DB_URL", "UNSET", "GITHUB_TOKEN"], ["DB_*"]) == ["GITHUB_TOKEN"]


# Places and names


def step(location: Any = None, **code: Any) -> dict[str, Any]:
    return {"location": {"python_file": "pipeline.py", **(location or {})}, "code": code}


@pytest.mark.parametrize(
    ("recorded", "problem"),
    [
        (step({"python_file": "/tmp/evil.py"}), "outside of the checkout"),
        (step({"python_file": "../evil.py"}), "outside of the checkout"),
        (step(cwd="/tmp"), "'/tmp'"),
        (step(path=["src", "a/../../lib"]), "'a/../../lib'"),
        (step(submodules={"../../home/me": "1a2b3c"}), "'../../home/me'"),
        (step(submodules={".git/hooks": "1a2b3c"}), "'.git/hooks'"),
        (step(submodules={"lib": "--upload-pack=touch /tmp/x"}), "is not a commit"),
        (step({"attribute": "__import__('os').abort"}), "is not a name in Python"),
        (step({"module": "../evil"}), "is not a name in Python"),
    ],
)
def test_a_step_that_leads_out_of_the_checkout_is_refused(recorded, problem):
    assert problem in step_problem(recorded)
    kept = {STEP: json.dumps({**STEP_FACTS, **recorded}).encode()}
    recipe = made(run_of(kept), kept)
    assert buckets(recipe, "step") == {"asset model": "faulty"} and not recipe.complete


def test_a_step_as_it_is_written_is_accepted():
    assert step_problem(step({"working_directory": ".", "attribute": "defs"}, cwd=".", path=[".", "src"])) == ""
    assert step_problem(step({"module": "shop.defs", "python_file": ""}, submodules={"lib": "1a2b" * 10})) == ""


def test_no_model_is_read_from_a_tracker_that_only_a_step_names(monkeypatch):
    """The IO manager of a rerun loads a model from where its record says that it is."""
    monkeypatch.delenv(ALLOW, raising=False)

    def inputs(tracking_uri: str, of: Ref | None = None) -> dict[str, str]:
        version = ModelVersion(of=of, name="base", version="3", run_id="1a", tracking_uri=tracking_uri)
        read = {"asset": "base", "loaded": True, "records": [version.to_dict()]}
        kept = {STEP: json.dumps({**STEP_FACTS, "reads": [read]}).encode()}
        return buckets(made(run_of(kept), kept), "data")

    theirs, ours = "http://theirs.example", run_of({}).tracking_uri
    assert inputs(theirs) == {"base/3": "inaccessible"} and inputs(ours) == {}
    assert inputs(theirs, Ref("mlflow", "model_version", "base/3", at=ours)) == {"base/3": "inaccessible"}


def test_definitions_and_a_working_directory_outside_of_the_checkout_are_the_callers_word():
    recorded = step({"python_file": "/srv/old/defs.py", "working_directory": "/home/me"})
    mine = Path("/srv/new/defs.py")
    assert "--definitions" in step_problem(recorded) and step_problem(recorded, definitions=mine) == ""
    assert safe_step(recorded, definitions=mine)["location"] == {"python_file": str(mine)}
    inside = step({"working_directory": "jobs"})
    assert safe_step(inside, definitions=mine) == inside, "what is in the checkout stays"


@pytest.mark.parametrize("commit", ["--output=/tmp/x", "main", "HEAD^{/x}", "1a2b; touch x", "1A2B\n"])
def test_a_commit_that_is_not_a_hash_reaches_no_git(checkout, tmp_path, commit):
    marked = commit.replace("/tmp/x", str(tmp_path / "written"))
    run = run_of(FILES, code_commit=marked)
    [only] = code_ingredients(run, FILES, checkout, "")
    assert only.bucket == "faulty" and find_repository(run, {}, checkout) is None
    good = run_of(FILES, code_commit=git(checkout, "rev-parse", "HEAD"))
    recipes = [Recipe(r, None, Link(r.ref, "accessible"), {}, checkout, ()) for r in (run, good)]
    explain(*recipes)
    assert not (tmp_path / "written").exists()


def test_no_submodule_and_no_dataset_is_written_over_a_link_that_leads_out(checkout, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (checkout / "lib").symlink_to(elsewhere)
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    git(library, "commit", "-qm", "first", "--allow-empty")
    commit = git(library, "rev-parse", "HEAD")
    git(library, "clone", "-q", "--bare", str(library), str(checkout / ".git" / "modules" / "lib" / "sub"))
    git(checkout, "add", "lib")
    git(checkout, "commit", "-qm", "second")
    assert submodule(checkout, "lib/sub", commit)
    with pytest.raises(ReproductionError, match="over a link"):
        check_out(checkout, git(checkout, "rev-parse", "HEAD"), tmp_path / "code", submodules={"lib/sub": commit})
    with pytest.raises(ReproductionError, match="is not a name below its folder"):
        submodule(checkout, "../library", commit)

    class Datasets:
        def datasets(self, at: str) -> Any:
            return self

        def read_path(self, path: str, *, md5: str | None = None) -> Path:
            return checkout / "train.py"

    tools: Any = SimpleNamespace(tool_for=lambda ref, kind: Datasets())
    for name in ("lib/rows.csv", "../rows.csv"):
        with pytest.raises(ReproductionError):
            restore_tracked({name: Ref("dvc", "dataset", "rows.csv@1a")}, tmp_path / "code", tools)
    assert list(elsewhere.iterdir()) == [] and not (tmp_path / "rows.csv").exists()


# Packages


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://evil.example.com/simple",
        "--extra-index-url=https://evil.example.com/simple",
        "-e /tmp/evil",
        "-r /tmp/more.txt",
        "shop @ git+https://evil.example.com/shop@1a2b",
        "shop @ file:///tmp/evil",
        "https://evil.example.com/numpy.whl",
        "./evil",
        "numpy>=2",
        "numpy==2.3.0 --config-settings=--x=y",
        "numpy==2.3.0 ; python_version > '3' --global-option=x",
        "numpy==2.3.0 \\\n --index-url=https://evil.example.com",
    ],
)
def test_only_versions_are_installed_from_a_runs_file_and_the_line_is_named(line):
    problem = requirements_problem("requirements.lock", f"numpy==2.3.0\n{line}\n".encode())
    assert problem and line.split("\n")[0].split(" \\")[0] in problem
    kept = {**FILES, "environment.txt": f"# own==1 from file:///srv/own\n{line}\n".encode()}
    recipe = made(run_of(kept), kept)
    assert buckets(recipe, "environment") == {"environment.txt, Python 3.11.7": "faulty"}


@pytest.mark.parametrize("place", ["https:evil.example/simple", "file:/tmp/simple", "git@evil.example:x.git"])
def test_an_address_without_slashes_is_one(place):
    lock = f'[[package]]\nname = "a"\nversion = "1"\nsource = {{ registry = "{place}" }}\n'
    assert requirements_problem("uv.lock", lock.encode()) == f"it names {place!r}"


def test_a_lock_file_as_the_tools_write_it_is_accepted():
    lines = [
        "# This file was autogenerated by uv",
        "numpy==2.3.0 \\\n    --hash=sha256:1a2b \\\n    --hash=sha256:3c4d",
        "    # via pandas",
        "torch==2.8.0+cpu ; sys_platform == 'linux' and python_full_version < '3.13'",
        "uvicorn[standard]==0.35.0  # via shop",
        "",
    ]
    assert requirements_problem("requirements.lock", "\n".join(lines).encode()) == ""
    uv = """
version = 1
requires-python = ">=3.11"
[[package]]
name = "numpy"
version = "2.3.0"
source = { registry = "https://pypi.org/simple" }
sdist = { url = "https://files.pythonhosted.org/packages/1a/numpy.tar.gz", hash = "sha256:1a", size = 1 }
[[package]]
name = "shop"
source = { editable = "." }
[[package]]
name = "part"
source = { editable = "packages/part" }
"""
    assert requirements_problem("uv.lock", uv.encode()) == ""
    for good, evil in (
        ("https://pypi.org/simple", "https://pypi.org.evil.example.com/simple"),
        ("https://pypi.org/simple", "https://pypi.org@evil.example.com/simple"),
        ('registry = "https://pypi.org/simple"', 'git = "ssh://evil.example.com/x#1a2b"'),
        ("packages/part", "../../tmp/evil"),
        ('editable = "."', 'directory = "/tmp/evil"'),
        ("[[package]]", "[[package"),
    ):
        assert requirements_problem("uv.lock", uv.replace(good, evil).encode()), evil


def test_a_lock_file_of_the_commit_may_name_an_index_and_a_changed_one_may_not(checkout):
    commit, lock = git(checkout, "rev-parse", "HEAD"), (checkout / "requirements.lock").read_bytes()
    changed = lock.replace(b"packages.example.com", b"evil.example.com")
    for content, bucket in ((lock, "accessible"), (changed, "faulty")):
        kept = {**FILES, "requirements.lock": content}
        run = run_of(kept, code_commit=commit, lock_hash=sha256_of(content))
        assert list(buckets(made(run, kept, repo=checkout), "environment").values()) == [bucket]


def test_a_python_that_is_not_a_version_is_not_started(checkout, tmp_path):
    kept = {**FILES, "environment.txt": b"numpy==2.3.0\n"}
    for python in ("/tmp/evil/python", "../python", "3.11 --evil", ""):
        assert list(buckets(made(run_of(kept, python=python), kept), "environment").values()) == ["faulty"]
    # A lock file is not written through a link that the code brings.
    (tmp_path / "target").write_text("before")
    (checkout / "uv.lock").symlink_to(tmp_path / "target")
    with pytest.raises(ReproductionError):
        install("uv.lock", b"version = 1\n", python="0.1", folder=tmp_path / "venv", code=checkout)
    assert (tmp_path / "target").read_text() == "before"


def test_packages_that_only_a_record_names_are_shown_and_need_consent(checkout, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD")
    kept = {**FILES, "environment.txt": f"numpy==2.3.1\npytest=={pytest.__version__}\nReqeusts==2.0\n".encode()}
    run = run_of(kept, code_commit=commit)
    recipe = made(run, kept, repo=checkout)
    assert recipe.complete
    lines: list[str] = []
    options: dict[str, Any] = {
        "tools": Tools({"mlflow": Answers(Accessible(run), kept)}, allow=[run.tracking_uri]),
        "tell": lines.append,
    }
    with pytest.raises(ReproductionError, match=r"has: reqeusts 2\.0\. The run is not in Dagster's .*--yes"):
        rerun(recipe, tmp_path / "work", **options)
    assert not (tmp_path / "work").exists(), "nothing was cloned or installed"
    requirements = ("environment.txt", kept["environment.txt"])
    shown = [
        "packages: 1 neither locked in the checkout nor installed here: reqeusts 2.0",
        "packages: 1 in another version: numpy 2.3.1 (here 2.3.0)",
    ]
    assert whose_packages(recipe, *requirements, consent=True) == shown
    witnessed = dataclasses.replace(recipe, witness=run)
    assert whose_packages(witnessed, *requirements, consent=False) == shown, "the event log has the hash of the file"
    lock = (checkout / "requirements.lock").read_bytes()
    assert whose_packages(recipe, "requirements.lock", lock, consent=False) == [], "it is of the commit"
    for name, text in {
        "uv.lock": '[["package"]]\nversion = "1"\nname = "evil"\n',
        "pylock.toml": 'packages = [{name = "EVIL", version = "1"}]\n',
        "requirements.lock": "numpy==2.3.0\nevil[a, b] \\\n  == 1 --hash=sha256:1a\n",
        "environment.txt": "numpy==2.3.0\x0bevil==1\n",
    }.items():
        with pytest.raises(ReproductionError, match=r"has: evil 1\. The run"):
            whose_packages(recipe, name, text.encode(), consent=False)


# Whose code


def recipe_of(checkout: Path, **facts: Any) -> Recipe:
    run = run_of(FILES, **{"code_commit": git(checkout, "rev-parse", "HEAD"), "tool_facts": {"user": "ann"}, **facts})
    files = {**FILES, DIFF: b"diff --git a/x.py b/x.py\n"}
    return Recipe(run, None, Link(run.ref, "accessible"), files, checkout, (), witness=run)


def test_whose_code_runs_is_said_before_it_runs(checkout):
    git(checkout, "remote", "add", "origin", "https://ann:s3cret@git.example.com/shop")
    code, run = whose_code(recipe_of(checkout), checkout, consent=False)
    assert git(checkout, "log", "--format=%an <%ae>", "-1") in code and "git.example.com/shop" in code
    assert "s3cret" not in code and "written by ann" in run
    _, changes, _ = whose_code(recipe_of(checkout, dirty="1a2b"), checkout, consent=False)
    assert changes.endswith("with 1 uncommitted changes, which no commit has: x.py")
    unknown = dataclasses.replace(recipe_of(checkout, dirty="1a2b"), witness=None)
    assert len(whose_code(unknown, checkout, consent=True)) == 3
    with pytest.raises(ReproductionError, match=r"1 uncommitted changes, .* x\.py\. The run is not in .* --yes"):
        whose_code(unknown, checkout, consent=False)


def test_a_checkout_that_a_record_names_runs_no_program_of_its_configuration(checkout, tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOW)
    marker, program = tmp_path / "marker", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    signed, lock = git(checkout, "rev-parse", "HEAD^{tree}", "HEAD:requirements.lock").split()
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----"
    body = f"tree {signed}\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n{signature}\n\nsigned\n"
    commit = (
        subprocess.run(
            ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
            cwd=checkout,
            input=body.encode(),
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .strip()
    )
    git(checkout, "update-ref", "HEAD", commit)
    config = {
        "gpg.program": program,
        "log.showSignature": "true",
        "core.fsmonitor": program,
        "core.sshCommand": program,
    }
    partial = {"remote.origin.url": "ssh://example.com/x", "remote.origin.promisor": "true", "core.pager": program}
    for name, value in {
        **config,
        **partial,
        "extensions.partialClone": "origin",
        "core.repositoryFormatVersion": "1",
    }.items():
        git(checkout, "config", name, str(value))
    run = run_of(FILES, code_commit=commit)
    assert find_repository(run, {"code": {"toplevel": str(checkout)}}, None) == checkout
    missing = run_of(FILES, code_commit="1a2b" * 10)
    assert find_repository(missing, {"code": {"toplevel": str(checkout)}}, None) is None
    assert "signed" in whose_code(recipe_of(checkout), checkout, consent=False)[0]
    hook = checkout / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(program.read_text())
    hook.chmod(0o755)
    (checkout / ".git" / "objects" / lock[:2] / lock[2:]).unlink()  # as in a partial clone
    diff = b"diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x\n"
    files = {**FILES, STEP: json.dumps({**STEP_FACTS, "code": {"toplevel": str(checkout)}}).encode(), DIFF: diff}
    recipe = made(run_of(files, code_commit=commit, dirty=sha256_of(diff), lock_hash="1a2b"), files)
    assert set(buckets(recipe, "code").values()) == {"accessible"} and recipe.repository == checkout
    assert not marker.exists()


def test_a_schedule_runs_nothing_that_is_only_in_the_tracker(checkout):
    """A colleague with access to MLflow gives a run of his own a commit of a branch, and the champion's alias."""
    recipe = dataclasses.replace(recipe_of(checkout), witness=None)
    with pytest.raises(ReproductionError, match=r"is not in Dagster's event log: whoever can write to .* made it"):
        refuse_unknown_code(recipe, checkout, ["*"])
    run = run_of(FILES)
    version = ModelVersion(name="m", version="1", run_id=run.run_id, sha256="1a2b", tracking_uri=run.tracking_uri)
    with dg.DagsterInstance.ephemeral() as instance:
        assert made(run, FILES, events=EventLog(instance)).witness is None
        facts = {**run.to_metadata(), **version.to_metadata()}
        instance.report_runless_asset_event(dg.AssetMaterialization("m", metadata=facts))
        known = made(run, FILES, events=EventLog(instance))
    assert known.witness == run and known.witness_sha256 == "1a2b"


def test_a_schedule_runs_commits_of_branches_only(checkout):
    refuse_unknown_code(recipe_of(checkout), checkout, ["*"])
    refuse_unknown_code(recipe_of(checkout), checkout, ["release/*", "main"])
    with pytest.raises(ReproductionError, match="no branch like release"):
        refuse_unknown_code(recipe_of(checkout), checkout, ["release/*"])
    with pytest.raises(ReproductionError, match="1 uncommitted changes"):
        refuse_unknown_code(recipe_of(checkout, dirty="1a2b"), checkout, ["*"])
    git(checkout, "checkout", "-q", "--detach")
    git(checkout, "commit", "-qm", "of no branch", "--allow-empty")
    git(checkout, "tag", "main-2")
    with pytest.raises(ReproductionError, match="no branch like \\*"):
        refuse_unknown_code(recipe_of(checkout), checkout, ["*"])
    git(checkout, "update-ref", "refs/remotes/origin/release/1", "HEAD")
    refuse_unknown_code(recipe_of(checkout), checkout, ["release/*"])


# For real


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("warm_tools")
def test_a_run_that_someone_has_rewritten_runs_no_code_of_his_and_gets_no_secret(tmp_path, monkeypatch):
    """With write access to the artifacts and to MLflow, so that the hash is his own, too."""
    look = 'mlflow.log_param("token", os.environ.get("MLFLOW_TRACKING_TOKEN", "none"))\n    mlflow.log_params({"C"'
    project = Project(tmp_path / "project", PIPELINE.replace('mlflow.log_params({"C"', look))
    run_id = project.train()
    evil, marker = tmp_path / "evil", tmp_path / "marker"
    evil.mkdir()
    for name in ("sitecustomize.py", "pandas.py"):
        (evil / name).write_text(f"open({str(marker)!r}, 'a').write(__name__)\n")
    client = MlflowResource(tracking_uri=project.uri).client()
    kept = Path(str(client.get_run(run_id).info.artifact_uri).removeprefix("file://"), "code")
    system, told = json.loads((kept / SYSTEM).read_text()), json.loads((kept / STEP).read_text())
    (kept / SYSTEM).write_text(json.dumps({**system, "environment": {"PYTHONPATH": str(evil)}}))
    told["location"]["working_directory"] = str(evil)
    (kept / STEP).write_text(json.dumps(told))
    assert "files in code/" in {part.name for part in project.recipe(run_id).missing}

    record = TrainingRun.from_json(client.get_run(run_id).data.tags[RECORD])
    hashes = {file.name: sha256_of(file.read_bytes()) for file in kept.iterdir() if file.name in KEPT}
    assert isinstance(record, TrainingRun)
    client.set_tag(run_id, RECORD, dataclasses.replace(record, files_hash=files_hash(hashes)).to_json())
    monkeypatch.setenv("TEST_HOME", str(project.home))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    lines: list[str] = []
    (tmp_path / "work").mkdir()
    options: dict[str, Any] = {"environment": "current", "variables": ["TEST_HOME"], "tell": lines.append}
    verdict = rerun(project.recipe(run_id), tmp_path / "work", **options)
    assert not marker.exists() and verdict.reproduced, verdict.different
    assert [line.partition(":")[0] for line in lines[:2]] == ["code", "run"]
