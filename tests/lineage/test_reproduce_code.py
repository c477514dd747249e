"""What a run keeps of its code, config and environment is what runs again, whatever the place and the settings."""

import enum
import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.core.code_state import CodeState, code_state
from dagster_mlops.core.run_files import PACKAGES
from dagster_mlops.errors import ReproductionError
from dagster_mlops.lineage.reproduction.code import check_out, code_ingredients, submodule, top_level
from dagster_mlops.lineage.reproduction.environment import install
from dagster_mlops.lineage.reproduction.recipe import find_recipe
from dagster_mlops.lineage.reproduction.rerun import rerun
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.models.log import log_model
from dagster_mlops.mlflow.training import packages as licences
from dagster_mlops.mlflow.training.capture import capture_files, holds_key
from dagster_mlops.provenance import TrainingRun
from tests.support import known_warnings
from tests.support.training_project import Project

pytestmark = [*known_warnings.MLFLOW]


# Config


class Loss(enum.Enum):
    SQUARED = "squared"
    HUBER = "huber"


class Source(dg.Config):
    loss: Loss = Loss.SQUARED
    losses: list[Loss]
    by_day: dict[str, Loss | None]
    url: str = "https://host/labels.csv?api_key=abc"
    other: str = "unused"
    where: str = "s3://bucket@v1"
    more: dict[str, list[str]]


@training_asset(registered_model_name="delay")
def delay(config: Source) -> None:
    import pandas as pd
    from sklearn.tree import DecisionTreeClassifier

    rows = pd.DataFrame({"hour": [1.0, 23.0]})
    log_model(DecisionTreeClassifier().fit(rows, [0, 1]), rows)


def test_the_config_can_be_given_again_but_for_its_secrets_which_are_named(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    given = {
        "losses": ["HUBER"],
        "by_day": {"Mo": "HUBER", "Tu": None},
        "other": "postgresql://ml:s3cret@db/x",
        "more": {"a b": ["s3://x", "https://h/?sig=s3cret"]},
    }
    resources = {"mlflow": MlflowResource(tracking_uri=uri)}
    dg.materialize([delay], resources=resources, run_config={"ops": {"delay": {"config": given}}})
    recipe = find_recipe("delay/1", at=uri)
    assert recipe.step["config"] == {
        "loss": "SQUARED",
        "losses": ["HUBER"],
        "by_day": {"Mo": "HUBER", "Tu": None},
        "other": "postgresql://***@db/x",
        "where": "s3://bucket@v1",
        "more": {"a b": ["s3://x", "https://h/?sig=***"]},
    }, "the secret default is left to the code"
    lost = [(found.name, found.bucket) for found in recipe.missing if found.kind == "config"]
    assert lost == [("other", "inaccessible"), ("more.a b.1", "inaccessible")]
    [step] = [found for found in recipe.missing if found.kind == "step"]
    assert step.bucket == "unknown" and "dg.materialize" in step.reason
    again = {**recipe.step["config"], **given}
    assert dg.validate_run_config(
        dg.Definitions([delay], resources=resources).resolve_implicit_global_asset_job_def(),
        {"ops": {"delay": {"config": again}}},
    )


def test_a_secret_in_what_is_kept_leaves_the_file_whole():
    step = {"config": {"url": "https://h/x.csv?api_key=abc", "n": 1}}
    files = capture_files(code=CodeState(), lock=None, step=step, system={})
    assert json.loads(files["step.json"]) == {"config": {"url": "https://h/x.csv?api_key=***", "n": 1}}


def test_a_lock_file_with_a_password_is_one_with_a_key(tmp_path):
    lock = tmp_path / "requirements.lock"
    for index, found in (
        ("https://packages.example.com/simple", False),
        ("https://ann:s3cret@packages.example.com", True),
    ):
        for hashes in ("--hash=sha256:1a2b", f"\\\n    --hash=sha256:{'0a' * 32} \\\n    --hash=sha256:{'0b' * 32}"):
            lock.write_text(f"numpy==2.3.0 {hashes}\n--extra-index-url {index}\npandas==2.3.0 {hashes}\n")
            assert holds_key(lock) is found


# Code


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def repository(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    git(folder, "init", "-q")
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def checked_out(source: Path, folder: Path, state: CodeState) -> CodeState:
    check_out(source, state.commit, folder, submodules=state.submodules, diff=state.diff)
    return code_state(folder)


def test_uncommitted_changes_come_back_to_the_byte_under_any_configuration(tmp_path, monkeypatch):
    source = repository(tmp_path / "source", {"train.py": "x = 1\n" * 30, "lib/a.py": "a = 1\r\n"})
    (source / "train.py").write_bytes(b"x = 1\n" * 15 + b"name = 'caf\xe9'  \t\n" + b"x = 1\n" * 15 + b"\n\n\n")
    (source / "lib" / "a.py").write_bytes(b"a = 2\r\nb = 3\n")
    (source / "lib" / "rows").symlink_to("/nowhere")
    (source / "lib" / "here").symlink_to(".")
    state = code_state(source)
    config = {"apply.whitespace": "fix", "core.autocrlf": "true", "apply.ignoreWhitespace": "change"}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(config)))
    for number, (name, value) in enumerate(config.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", name)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    again = checked_out(source, tmp_path / "again", state)
    assert again.dirty_hash == state.dirty_hash
    for name in ("train.py", "lib/a.py"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()
    assert os.readlink(tmp_path / "again" / "lib" / "rows") == "/nowhere"


def test_a_submodule_comes_back_at_its_commit(tmp_path):
    library = repository(tmp_path / "library", {"a.py": "a = 1\n"})
    source = repository(tmp_path / "source", {"train.py": ""})
    git(source, "submodule", "add", "-q", str(library), "lib")
    git(source, "commit", "-qam", "second")
    (library / "a.py").write_text("a = 2\n")
    git(library, "commit", "-qam", "second")
    git(source / "lib", "pull", "-q")
    (source / "lib" / "a.py").write_text("a = 3\n")
    state = code_state(source)
    assert list(state.submodules) == ["lib"] and list(state.left_out) == ["lib"] and b"a = 3" not in state.diff
    again = checked_out(source, tmp_path / "again", state)
    assert (tmp_path / "again" / "lib" / "a.py").read_text() == "a = 2\n", "the newer commit was not committed above"
    assert again.dirty_hash == state.dirty_hash
    git(source, "submodule", "deinit", "-f", "lib")
    assert code_state(source).submodules == {} and not (source / "lib" / "a.py").exists()
    checked_out(source, tmp_path / "kept", state)
    assert submodule(source, "lib", "0" * 40) is None


def test_a_partial_clone_fetches_what_it_lacks_or_says_so(tmp_path):
    source = repository(tmp_path / "source", {"train.py": "x = 1\n", "b.py": ""})
    git(source, "config", "uploadpack.allowFilter", "true")
    then = code_state(source)
    (source / "train.py").write_text("x = 2\n")
    git(source, "commit", "-qam", "second")
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{source}", "partial")
    checked_out(tmp_path / "partial", tmp_path / "again", then)
    assert (tmp_path / "again" / "train.py").read_text() == "x = 1\n"
    source.rename(tmp_path / "away")
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--no-checkout", f"file://{tmp_path}/away", "empty")
    (tmp_path / "away").rename(source)
    with pytest.raises(ReproductionError, match="cannot be checked out"):
        checked_out(tmp_path / "empty", tmp_path / "more", then)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{source}", "shallow")
    git(tmp_path / "shallow", "checkout", "-q", "--detach")
    checked_out(tmp_path / "shallow", tmp_path / "head", code_state(tmp_path / "shallow"))


def test_what_is_too_large_to_keep_is_named(tmp_path):
    source = repository(tmp_path / "source", {"train.py": ""})
    (source / "rows.csv").write_bytes(b"1\n" * 600_000)
    repository(source / "other", {"b.py": ""})
    assert sorted(code_state(source).left_out) == ["other/", "rows.csv"]
    kept = {"submodules": {"lib": "1a2b"}, "left_out": ["rows.csv", "lib"]}
    run = TrainingRun(run_id="0" * 32, tracking_uri="x", code_commit="1a2b")
    found = code_ingredients(run, {"step.json": json.dumps({"code": kept}).encode()}, source, "")
    assert [(one.name, one.bucket, one.needed) for one in found[1:]] == [
        ("submodule lib 1a2b", "inaccessible", True),
        ("uncommitted rows.csv", "deleted", False),
        ("uncommitted lib", "deleted", False),
    ]
    assert top_level(source / "other") != source == top_level(source)


PLACED = """
import subprocess, sys
from multiprocessing import get_context
from pathlib import Path
import dagster as dg
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.models import log_model
from shop.rates import RATE, square

def doubled(x):
    return 2 * x

@training_asset(registered_model_name="delay", system_metrics=False)
def model() -> None:
    import mlflow, pandas as pd
    from sklearn.tree import DecisionTreeClassifier
    child = [sys.executable, "-c", "import shop.rates as r; print(r.RATE)"]
    told = subprocess.run(child, capture_output=True, check=True)
    with get_context("spawn").Pool(1) as pool:
        six = pool.map_async(doubled, [3]).get(60)[0]
    setting = int(Path("setting.txt").read_text())
    mlflow.log_metrics({"rate": RATE, "told": int(told.stdout), "nine": square(3), "six": six, "setting": setting})
    rows = pd.DataFrame({"hour": [1.0, 23.0]})
    log_model(DecisionTreeClassifier(random_state=0).fit(rows, [0, 1]), rows)

mlflow_resource = MlflowResource(tracking_uri="sqlite:///HOME/mlflow.db", experiment="delay")
defs = dg.Definitions([model], resources={"mlflow": mlflow_resource})
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_code_in_sub_folders_behind_a_link_runs_again_as_it_was_and_where_it_was(tmp_path, monkeypatch):
    rates = "RATE = {}\ndef square(x): return x * x\n"
    project = Project(tmp_path / "project", "raise SystemExit('another file of the same name')\n")
    pipeline = PLACED.replace("HOME", str(project.home))
    files = {"jobs/pipeline.py": pipeline, "jobs/setting.txt": "1", "src/shop/rates.py": rates.format(1)}
    for name, text in files.items():
        (project.code / name).parent.mkdir(parents=True, exist_ok=True)
        (project.code / name).write_text(text)
    project.commit()
    (tmp_path / "link").symlink_to(project.code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "link" / "src"))
    monkeypatch.chdir(tmp_path / "link" / "jobs")
    monkeypatch.setattr(project, "code", Path("."))
    project.python("-m", "dagster", "asset", "materialize", "-f", "pipeline.py", "--select", "*")
    (tmp_path / "link" / "jobs" / "setting.txt").write_text("2")
    (tmp_path / "link" / "src" / "shop" / "rates.py").write_text(rates.format(2))
    (tmp_path / "link" / "jobs" / "pipeline.py").write_text("raise SystemExit('of today')\n")
    project.commit()
    monkeypatch.chdir(tmp_path)
    recipe = project.recipe("delay/1")
    assert recipe.step["location"]["python_file"] == "jobs/pipeline.py" and recipe.step["code"]["cwd"] == "jobs"
    assert "src" in recipe.step["code"]["path"]
    (tmp_path / "work").mkdir()
    verdict = rerun(recipe, tmp_path / "work", environment="current")
    assert verdict.reproduced, verdict.different


# Environment


def test_a_build_leaves_the_code_unchanged_and_settings_of_tools_are_no_package(tmp_path):
    # A backend in the tree, so that nothing is fetched: it leaves behind what setuptools leaves.
    backend = """
import base64, hashlib, pathlib, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    pathlib.Path("own [1].egg-info").mkdir(exist_ok=True)
    pathlib.Path("own [1].egg-info", "PKG-INFO").write_text("Name: own")
    name = "own-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as wheel:
        wheel.writestr("own-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: own\\nVersion: 1\\n")
        wheel.writestr("own-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("own.pth", str(pathlib.Path.cwd()))
        wheel.writestr("own-1.dist-info/RECORD", "")
    return name
"""
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    source = repository(tmp_path / "source", {"pyproject.toml": system, "backend.py": backend, "own.py": "X = 1\n"})
    (source / "notes.py").write_text("")
    state = code_state(source)
    checked_out(source, tmp_path / "code", state)
    given = {"python": sys.executable, "folder": tmp_path / "venv", "code": tmp_path / "code"}
    python = install(PACKAGES, b"# own==1 from file:///srv/own\n", **given)
    assert subprocess.run([str(python), "-B", "-c", "import own; assert own.X == 1"], check=False).returncode == 0
    assert list((tmp_path / "code").glob("*.egg-info")) and code_state(tmp_path / "code").dirty_hash == state.dirty_hash

    tools = repository(tmp_path / "tools", {"pyproject.toml": "[tool.ruff]\nline-length = 120\n", "a/__init__.py": ""})
    install(PACKAGES, b"\n", python=sys.executable, folder=tmp_path / "other", code=tools)


@pytest.mark.parametrize(
    ("direct_url", "requirement"),
    [
        ({"url": "file:///home/conda/feedstock_root/numpy_17/work", "dir_info": {}}, "numpy==1.0"),
        ({"url": "file:///croot/numpy.whl", "archive_info": {}}, "numpy==1.0"),
        ({"url": "file:///gone", "dir_info": {"editable": True}}, "# numpy==1.0 from file:///gone"),
        (
            {"url": Path(__file__).parent.as_uri(), "dir_info": {}},
            f"# numpy==1.0 from {Path(__file__).parent.as_uri()}",
        ),
        (
            {"url": "https://host/numpy.git", "vcs_info": {"vcs": "git", "commit_id": "1a2b"}},
            "numpy @ git+https://host/numpy.git@1a2b",
        ),
    ],
)
def test_a_package_is_kept_by_version_unless_its_folder_is_here(tmp_path, monkeypatch, direct_url, requirement):
    kept = tmp_path / "numpy-1.0.dist-info"
    kept.mkdir()
    (kept / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    (kept / "direct_url.json").write_text(json.dumps(direct_url))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert _requirements_now() == requirement


def _requirements_now() -> str:
    licences.installed_packages.cache_clear()
    try:
        return licences.requirements().strip()
    finally:
        licences.installed_packages.cache_clear()
