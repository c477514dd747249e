"""A training that was stopped goes on from its last checkpoint, and ends as if it had not been."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import boto3
import dagster as dg
import mlflow
import numpy as np
import pytest
from botocore.exceptions import BotoCoreError
from moto.server import ThreadedMotoServer
from sklearn.linear_model import SGDClassifier

from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.training.checkpoints import RESUMED, Checkpoints, torch_checkpoints
from tests.support import known_warnings

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]
STEPS = 12
EXAMPLE = Path(__file__).parents[2] / "examples" / "gpu_training"


class Sums:
    """A training of little: its state is a sum of random numbers."""

    def __init__(self) -> None:
        self.values = np.zeros(3)

    def checkpoints(self, **options: int) -> Checkpoints:
        return Checkpoints(save=self.save, load=self.load, **options)

    def save(self, folder: Path) -> None:
        np.save(folder / "values.npy", self.values)

    def load(self, folder: Path) -> None:
        self.values = np.load(folder / "values.npy")

    def step(self) -> None:
        self.values = self.values + np.array([random.random(), *np.random.random(2)])


@pytest.fixture(scope="module")
def database(tmp_path_factory, empty_database):
    return shutil.copy(empty_database, tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def run(database):
    """The id of an MLflow run, and the folder of its checkpoints."""
    with (
        MlflowResource(tracking_uri=f"sqlite:///{database}", experiment="sums").activate(),
        mlflow.start_run() as active,
    ):
        yield active.info.run_id, Path(str(active.info.artifact_uri).removeprefix("file://"), "checkpoints")


def train(sums: Sums, *, until: int = STEPS, seed: int | None = 3, **options: int) -> list[int]:
    """The steps that were taken; `until` one of them the process dies."""
    random.seed(seed)
    np.random.seed(seed)
    taken = []
    for step in sums.checkpoints(**options).steps(STEPS):
        if step == until:
            break
        sums.step()
        taken.append(step)
    return taken


def expected() -> np.ndarray:
    random.seed(3)
    np.random.seed(3)
    sums = Sums()
    for _ in range(STEPS):
        sums.step()
    return sums.values


def test_a_second_attempt_goes_on_where_the_first_one_stopped_and_ends_the_same(run):
    assert train(Sums(), until=7) == list(range(7))
    again = Sums()
    assert train(again, seed=None) == list(range(7, STEPS))
    assert (again.values == expected()).all()
    assert mlflow.get_run(run[0]).data.tags[RESUMED] == "7"
    assert train(Sums()) == [], "all steps are taken: only what comes after them is left"


def test_only_the_newest_checkpoints_are_kept(run):
    train(Sums(), every=5, keep=1)
    assert sorted(file.name for file in run[1].iterdir()) == ["00000012", "00000012.json"]


@pytest.mark.parametrize("damage", ["no manifest", "truncated", "other bytes", "no folder", "empty manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(run, damage):
    train(Sums(), until=9)
    newest = run[1] / "00000009"
    values, manifest = newest / "values.npy", newest.with_suffix(".json")
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "truncated":
        values.write_bytes(values.read_bytes()[:-5])
    elif damage == "other bytes":
        values.write_bytes(values.read_bytes()[:-1] + b"?")
    elif damage == "no folder":
        shutil.rmtree(newest)
    else:
        manifest.write_text("")
    again = Sums()
    assert train(again, seed=None) == list(range(8, STEPS))
    assert (again.values == expected()).all()


def test_after_damage_to_all_checkpoints_new_ones_are_kept(run):
    train(Sums(), until=9)
    for name in ("00000008", "00000009"):
        (run[1] / name / "values.npy").write_bytes(b"")
    assert train(Sums(), until=3) == [0, 1, 2]
    again = Sums()
    assert train(again, seed=None) == list(range(3, STEPS))
    assert (again.values == expected()).all()
    assert len(list(run[1].glob("*.json"))) == 2


def test_a_checkpoint_that_cannot_be_stored_does_not_stop_the_training(run, caplog):
    sums = Sums()
    run[1].parent.mkdir(parents=True)
    run[1].write_text("a file where the folder would be")
    with pytest.MonkeyPatch.context() as patch:
        # What is listed of a store that takes nothing: nothing.
        patch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.list_artifacts", lambda *_: [])
        assert train(sums) == list(range(STEPS))
    assert "The checkpoint after step 12 of 12 is not stored" in caplog.text


def test_a_bucket_that_is_away_for_a_while_stops_no_training(database, free_port, monkeypatch, caplog):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", url)

    def stop(server: ThreadedMotoServer) -> None:
        server.stop()
        assert server._server is not None
        server._server.server_close()

    # What one server was told, the next one of this process knows.
    here, back = (ThreadedMotoServer("127.0.0.1", port, verbose=False) for _ in range(2))
    here.start()
    boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="runs")
    resource = MlflowResource(tracking_uri=f"sqlite:///{database}", experiment="s3", artifact_location="s3://runs/ml")
    sums, again = Sums(), Sums()
    with resource.activate(), mlflow.start_run():
        for step in sums.checkpoints().steps(6):
            sums.step()
            if step == 2:
                stop(here)
            if step == 4:
                back.start()
        assert caplog.text.count("of 6 is not stored, the training continues") == 2
        assert train(again, seed=None) == list(range(6, STEPS))
        stop(back)
        with pytest.raises(BotoCoreError):  # rather than from the beginning: the retry that comes later finds them
            train(Sums())


def test_a_state_that_does_not_fit_is_an_error_that_says_so(run):
    train(Sums(), until=4)

    def load(folder: Path) -> None:
        raise ValueError("3 values, not 5")

    with pytest.raises(TrainingRunError, match=r"after step 4 does not fit: 3 values, not 5"):
        next(Checkpoints(save=Sums().save, load=load).steps(STEPS))


def test_wrong_use_is_an_error_that_names_the_right_one():
    with pytest.raises(TrainingRunError, match="use them in a training asset"):
        next(Sums().checkpoints().steps(STEPS))
    with pytest.raises(TrainingRunError, match="must be at least 1"):
        Sums().checkpoints(every=0)
    with pytest.raises(TrainingRunError, match=r"torch_checkpoints\(model=int\): it has neither"):
        torch_checkpoints(model=3)


@pytest.mark.formats
def test_a_state_that_could_not_be_read_again_is_an_error_at_the_first_checkpoint(run):
    pytest.importorskip("torch")

    class History(dict):
        def state_dict(self) -> dict:
            return {"best": np.float64(0.7)}

        def load_state_dict(self, state: dict) -> None: ...

    with pytest.raises(TrainingRunError, match=r"torch_checkpoints\(history\).* no NumPy values"):
        list(torch_checkpoints(history=History()).steps(2))


# --- in a training asset that is killed


@training_asset(registered_model_name="digits", seed=5)
def digits_model(context: dg.AssetExecutionContext) -> None:
    """Reads digits; stops for ever after the step that the environment names, at its first attempt."""
    import skops.io
    from mlflow.models import infer_signature
    from sklearn.datasets import load_digits

    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    model, classes = SGDClassifier(loss="log_loss"), np.unique(digits)

    def load(folder: Path) -> None:
        nonlocal model
        model = skops.io.load(folder / "model.skops", trusted=TRUSTED)

    checkpoints = Checkpoints(save=lambda folder: skops.io.dump(model, folder / "model.skops"), load=load)
    for step in checkpoints.steps(STEPS):
        rows = np.random.permutation(len(digits))[:200]
        model.random_state = step
        model.partial_fit(pixels[rows], digits[rows], classes=classes)
        if str(step) == os.environ.get("STOP_AFTER") and not context.run.parent_run_id:
            Path("stopped").touch()
            time.sleep(60)
    mlflow.log_metric("weights", float(np.abs(np.asarray(model.coef_)).sum()))
    mlflow.sklearn.log_model(  # pyright: ignore[reportPrivateImportUsage]
        model,
        name="model",
        signature=infer_signature(pixels[:3], digits[:3]),
        input_example=pixels[:3],
        pip_requirements=["scikit-learn"],
        skops_trusted_types=TRUSTED,
    )


TRUSTED = ["sklearn.linear_model._sgd_fast.Hinge", "sklearn._loss._loss.CyHalfBinomialLoss"]
WORKER = """
    import sys
    import dagster as dg
    from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run a job of a file
    file, attribute, job_name, parent = sys.argv[1:]
    job = ReconstructableRepository.for_file(file, attribute).get_reconstructable_job(job_name)
    with dg.DagsterInstance.get() as instance:
        again = dg.ReexecutionOptions.from_failure(parent, instance) if parent else None
        with dg.execute_job(job, instance, reexecution_options=again) as result:
            sys.exit(not result.success)
"""
DEFS = dg.Definitions(
    assets=[digits_model],
    jobs=[dg.define_asset_job("train", executor_def=dg.in_process_executor)],
    resources={
        "mlflow": MlflowResource(
            tracking_uri=os.environ.get("TEST_MLFLOW_URI", "sqlite:///unused.db"), experiment="digits"
        )
    },
)


def _start(*arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WORKER), *arguments]
    # The file that it runs imports helpers of the tests, also as a copy elsewhere.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    with Path("worker.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def _finish(worker: "subprocess.Popen[bytes]") -> None:
    assert worker.wait(120) == 0, Path("worker.log").read_text()[-3000:]


@pytest.fixture
def world(tmp_path, monkeypatch, database):
    """A Dagster home and an MLflow database, told to child processes by the environment."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("")
    uri = f"sqlite:///{shutil.copy(database, tmp_path)}"
    for name, value in {"DAGSTER_HOME": str(home), "TEST_MLFLOW_URI": uri, "DIGITS_STATE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance, MlflowResource(tracking_uri=uri, experiment="digits")


def _killed_and_continued(instance, tmp_path, *arguments: str, **variables: str) -> None:
    """One worker is killed once it says that it has stopped; another one re-executes its Dagster run."""
    worker = _start(*arguments, "", **variables)
    deadline = time.monotonic() + 90
    while not (tmp_path / "stopped").exists():
        assert worker.poll() is None and time.monotonic() < deadline, Path("worker.log").read_text()[-3000:]
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    [dead] = instance.get_runs()
    instance.report_run_failed(dead)  # as Dagster's run monitoring does
    _finish(_start(*arguments, dead.run_id, **variables))


def test_a_training_that_is_killed_ends_with_the_weights_of_one_that_is_not(world, tmp_path):
    instance, resource = world
    # Not in a checkout, where another edit would make the second attempt a run of its own.
    file = shutil.copy(__file__, tmp_path / "killed.py")
    _killed_and_continued(instance, tmp_path, str(file), "DEFS", "train", STOP_AFTER="8")
    assert dg.materialize([digits_model], resources={"mlflow": resource}, instance=instance).success
    client = resource.client()
    continued, whole = client.search_runs([resource.experiment_id(client)], order_by=["attributes.start_time ASC"])
    assert (continued.info.status, whole.info.status) == ("FINISHED", "FINISHED")
    assert continued.data.tags[RESUMED] == "8" and continued.data.tags[runs.ATTEMPT] == "1"
    assert continued.data.metrics["weights"] == whole.data.metrics["weights"] > 0
    assert len(client.search_model_versions("name='digits'")) == 2


@pytest.mark.formats
def test_the_pytorch_example_that_is_killed_ends_with_the_predictions_of_one_that_is_not(world, tmp_path):
    pytest.importorskip("torch")
    instance, resource = world
    definitions = tmp_path / "stopping.py"
    definitions.write_text(
        textwrap.dedent(f"""
        import os, pathlib, sys, time
        import dagster as dg
        sys.path.insert(0, {str(shutil.copytree(EXAMPLE, tmp_path / "example"))!r})
        from digits import network
        from digits.definitions import digits, digits_model
        from dagster_mlops.mlflow import MlflowResource
        real, calls = network.train_one_epoch, []
        def stopping(*arguments):
            calls.append(1)
            if len(calls) == 5 and not pathlib.Path("stopped").exists():
                pathlib.Path("stopped").touch()
                time.sleep(60)
            return real(*arguments)
        network.train_one_epoch = stopping
        defs = dg.Definitions(
            assets=[digits, digits_model],
            jobs=[dg.define_asset_job("train", executor_def=dg.in_process_executor)],
            resources={{"mlflow": MlflowResource(tracking_uri=os.environ["TEST_MLFLOW_URI"])}},
        )
    """)
    )
    _killed_and_continued(instance, tmp_path, str(definitions), "defs", "train")
    _finish(_start(str(definitions), "defs", "train", ""))
    client = resource.client()
    continued, whole = client.search_runs([resource.experiment_id(client)], order_by=["attributes.start_time ASC"])
    assert continued.data.tags[RESUMED] == "4" and whole.data.metrics["accuracy"] > 0.9
    # On a busy machine a training takes long enough for measurements of the machine.
    learned = [{n: v for n, v in run.data.metrics.items() if not n.startswith("system/")} for run in (continued, whole)]
    assert learned[0] == learned[1]
    pixels = np.random.default_rng(1).integers(0, 17, (50, 64)).astype("float32")
    with resource.activate():
        first, second = (mlflow.pyfunc.load_model(f"models:/digits/{number}").predict(pixels) for number in (1, 2))
    assert (first == second).all()


@pytest.mark.parametrize(("profile", "limits"), [("cpu", {"memory": "4Gi"}), ("gpu", {"nvidia.com/gpu": 1}), ("", {})])
def test_the_example_gets_a_gpu_by_its_profile_and_loads_without_torch(profile, limits, tmp_path):
    program = """
        import json, sys
        before = {*sys.modules}  # a warm process has what its tools import where PyTorch is installed
        import dagster as dg
        from digits.definitions import defs
        dg.Definitions.validate_loadable(defs)
        assert "torch" not in sys.modules.keys() - before
        model = defs.get_assets_def("digits_model")
        pod = json.loads(model.op.tags["dagster-k8s/config"])
        print(pod["container_config"]["resources"].get("limits", {}), model.op.pool)
    """
    variables = {"PYTHONPATH": str(EXAMPLE), "DIGITS_STATE": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    chosen = {"DIGITS_PROFILE": profile} if profile else {}
    done = subprocess.run(command, env={**os.environ, **variables, **chosen}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"'{name}': {value!r}" in done.stdout for name, value in limits.items())
    assert done.stdout.strip().endswith("gpu" if profile == "gpu" else "None")
