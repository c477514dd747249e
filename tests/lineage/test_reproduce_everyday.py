"""What trainings do every day, and what the command says of it: neither more than is true, nor less.

Each is run for real, by the command, in one project that is trained once.
"""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.mlflow import MlflowResource
from tests.lineage.test_reproduce_fooled import IN_PROCESS, Quiet
from tests.support import known_warnings
from tests.support.training_project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,  # `test_model_values.py` and `test_reads.py` have the parts of it
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
]

PIPELINE = """
import ctypes, os, socket, subprocess, threading, time
from pathlib import Path
import dagster as dg
import numpy as np
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.models import log_model

HOME = Path(os.environ["TEST_HOME"])
RATE = float(os.environ.get("SHOP_RATE", 1))
AGAIN = "dagster-mlops-rerun" in os.getcwd()

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    hours = np.random.default_rng(0).uniform(0, 24, 400)
    return pd.DataFrame({"hour": hours, "late": (hours > 12).astype(int)})

def log_tree(rows, scale=1):
    from sklearn.tree import DecisionTreeClassifier
    log_model(DecisionTreeClassifier(random_state=0).fit(rows[["hour"]] * scale, rows["late"]), rows[["hour"]])

def log_pyfunc(python_model, rows, **options):
    import mlflow
    return mlflow.pyfunc.log_model(
        python_model=python_model, signature=mlflow.models.infer_signature(rows[["hour"]], [1.0]),
        input_example=rows[["hour"]].head(), pip_requirements=[], code_paths=["predictor.py"],
        **{"name": "model", **options},
    )

TRAININGS = []

def training(function=None, **options):
    if function is None:
        return lambda function: training(function, **options)
    made = training_asset(registered_model_name=function.__name__, system_metrics=False, **options)(function)
    TRAININGS.append(made)
    return made

# What a training reads

@training
def by_weights(rows: pd.DataFrame) -> None:
    log_tree(rows, float((HOME / "weights.pth").read_text()))

@training
def by_socket(rows: pd.DataFrame) -> None:
    with socket.socket(socket.AF_UNIX) as database:
        database.connect(str(HOME / "db.sock"))
        log_tree(rows, float(database.recv(10)))

@training
def by_library(rows: pd.DataFrame) -> None:
    library = ctypes.CDLL(str(HOME / "libscale.so"))
    log_tree(rows, 1 + abs(library.abs(-1)))

@training
def by_program(rows: pd.DataFrame) -> None:
    log_tree(rows, float(subprocess.check_output([HOME / "scale", "2"])))

@training
def by_linked_folder(rows: pd.DataFrame) -> None:
    log_tree(rows, pd.read_csv("linked/elsewhere.csv")["scale"][0])

class Settings(dg.ConfigurableResource):
    file: str = str(HOME / "elsewhere.csv")
    scale: float = 1.0

    def setup_for_execution(self, context) -> None:
        self._scale = pd.read_csv(self.file)["scale"][0] * self.scale

class Database(dg.ConfigurableResource):
    def setup_for_execution(self, context) -> None:
        self._connection = socket.create_connection(("127.0.0.1", int(os.environ["TEST_PORT"])))

class Given(dg.ConfigurableResource):
    scale: float = 1.0

@dg.resource
def old_settings(context):
    return pd.read_csv(HOME / "elsewhere.csv")["scale"][0]

@training
def by_resource(rows: pd.DataFrame, settings: Settings) -> None:
    log_tree(rows, settings._scale)

@training
def by_old_resource(rows: pd.DataFrame, old_settings: dg.ResourceParam[float]) -> None:
    log_tree(rows, old_settings)

@training
def by_connection(rows: pd.DataFrame, database: Database) -> None:
    database._connection.sendall(b"GET /elsewhere.csv HTTP/1.0\\r\\n\\r\\n")
    text = b""
    while part := database._connection.recv(4096):
        text += part
    log_tree(rows, float(text.split()[-1]))

@training
def by_given_resource(rows: pd.DataFrame, given: Given) -> None:
    import mlflow
    mlflow.log_metric("scale", given.scale)
    log_tree(rows, given.scale)

# What a model is

@training
def blend(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Blend(np.random.default_rng().random()), rows)

@training
def linked(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Linked(predictor.Log if AGAIN else predictor.Identity), rows)

@training
def chosen_function(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Linked(lambda: np.expm1 if AGAIN else np.exp), rows)

@training
def chosen_class(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Linked(lambda: predictor.Log if AGAIN else predictor.Identity), rows)

@training
def pids(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Pids(np.random.default_rng().random(4)), rows)

@training
def totals(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Totals(1 + np.random.default_rng().random()), rows)

@training(several_models=True)
def several(rows: pd.DataFrame):
    import predictor
    first = log_pyfunc(predictor.Totals(1.0), rows, name="first")
    second = log_pyfunc(predictor.Totals(2.0 + np.random.default_rng().random()), rows, name="second")
    return first

@training
def no_answers(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Nothing(np.random.default_rng().random()), rows)

# What may differ

@training
def own_server(rows: pd.DataFrame) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve():
            server.accept()[0].sendall(b"2")
        threading.Thread(target=serve, daemon=True).start()
        with socket.create_connection(server.getsockname()) as client:
            log_tree(rows, float(client.recv(9)))

@training
def own_manager(rows: pd.DataFrame) -> None:
    from multiprocessing import get_context
    with get_context("fork").Manager() as manager:
        shared = manager.dict(scale=2)
        log_tree(rows, shared["scale"])

@training
def measured_later(rows: pd.DataFrame) -> None:
    import mlflow
    mlflow.log_metric("auc", 0.8)
    log_tree(rows)

@training
def local_time(rows: pd.DataFrame) -> None:
    import mlflow
    mlflow.log_metric("hour", time.localtime(0).tm_hour)
    log_tree(rows)

@training
def noted(rows: pd.DataFrame) -> None:
    import datetime, mlflow, tempfile
    mlflow.log_params({
        "trained_at": datetime.datetime.now().isoformat(), "settings": str(Path(__file__).with_name("settings.yaml")),
        "folder": tempfile.mkdtemp(),
    })
    log_tree(rows)

@training
def rated(rows: pd.DataFrame) -> None:
    import mlflow
    mlflow.log_metric("rate", RATE)
    log_tree(rows)

@training
def warm(rows: pd.DataFrame) -> None:
    import mlflow
    try:
        mlflow.log_metric("before", float(mlflow.MlflowClient().get_model_version("by_weights", "1").version))
    except Exception as error:
        mlflow.log_metric("before", 0)
    log_tree(rows)

defs = dg.Definitions(
    assets=[rows, *TRAININGS],
    resources={
        "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
        "dvc_io_manager": dvc_io_manager,
        "settings": Settings(), "database": Database(), "given": Given(), "old_settings": old_settings,
        "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delay"),
    },
)
"""

PREDICTOR = """
import mlflow.pyfunc
import numpy as np

class Hidden(mlflow.pyfunc.PythonModel):
    # Its state decides for rows only that are not in the training set.
    def predict(self, context, model_input):
        hours = model_input["hour"].to_numpy()
        return np.where(hours < 0, np.nan, hours)

class Blend(Hidden):
    def __init__(self, value):
        self.weights, self.cutoff = np.ones(30), value

    def get_weights(self):
        return [self.weights]

class Identity: ...

class Log: ...

class Linked(Hidden):
    def __init__(self, make):
        self.weights, self.link = np.ones(30), make()

class Pids(Hidden):
    def __init__(self, value):
        self.weights, self.pid, self.train_times = np.ones(30), value, value

class Totals(mlflow.pyfunc.PythonModel):
    # One row in six is a total.
    def __init__(self, value):
        self.text = str(value)

    def predict(self, context, model_input):
        hours = model_input["hour"].to_numpy() * float(self.text)
        hours[::6] = 1e13
        return hours

class Nothing(mlflow.pyfunc.PythonModel):
    def __init__(self, value):
        self.blob = str(value).encode()

    def predict(self, context, model_input):
        return np.full(len(model_input), np.nan)
"""


def _serve(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"2")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Each asset is trained once, nearly all in one process."""
    project = Project(tmp_path_factory.mktemp("p"), PIPELINE)
    (project.code / "predictor.py").write_text(PREDICTOR)
    (project.code / "linked").symlink_to(project.home)
    project.commit()
    (project.home / "elsewhere.csv").write_text("scale\n2\n")
    (project.home / "weights.pth").write_text("2")
    shutil.copyfile(next(Path("/lib").rglob("libc.so.6")), project.home / "libscale.so")
    shutil.copy("/bin/echo", project.home / "scale")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(project.home)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    database = socket.socket(socket.AF_UNIX)
    database.bind(str(project.home / "db.sock"))
    database.listen()
    threading.Thread(target=_serve, args=[database], daemon=True).start()
    materialize = ("-m", "dagster", "asset", "materialize", "-f", "pipeline.py")
    given = {**json.loads(IN_PROCESS), "resources": {"given": {"config": {"scale": 3.0}}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_PORT", str(server.server_port))
        patch.setenv("SHOP_RATE", "2")
        apart = "local_time", "by_given_resource"
        others = " and ".join(['key:"*"', *(f"not key:{name}" for name in apart)])
        project.python(*materialize, "--config-json", IN_PROCESS, "--select", others)
        project.python(*materialize, "--config-json", json.dumps(given), "--select", "by_given_resource")
        patch.setenv("TZ", "Asia/Tokyo")
        project.python(*materialize, "--config-json", IN_PROCESS, "--select", "local_time")
        patch.setenv("TZ", "UTC")
        client = MlflowResource(tracking_uri=project.uri).client()
        client.log_metric(client.get_model_version("measured_later", "1").run_id or "", "production_auc", 0.7)
        version = client.get_model_version("several", "1")
        run = client.get_run(version.run_id or "")
        [second] = client.search_logged_models([run.info.experiment_id], "name='second'")
        place = str(second.artifact_location)
        client.create_model_version("several", place, run.info.run_id, model_id=second.model_id)
        patch.setenv("TEST_HOME", str(project.home))
        yield project
    database.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "strength", "because"),
    [
        ("by_weights", "too little to tell", "weights.pth"),
        ("by_socket", "too little to tell", "db.sock"),
        ("by_library", "too little to tell", "libscale.so"),
        ("by_program", "too little to tell", "scale"),
        ("by_linked_folder", "too little to tell", "elsewhere.csv"),
        ("by_resource", "too little to tell", "elsewhere.csv"),
        ("by_old_resource", "too little to tell", "elsewhere.csv"),
        ("by_connection", "too little to tell", "data 127.0.0.1:"),
        ("by_given_resource", "reproduced", ""),
        ("blend", "not the same", "learned values"),
        ("linked", "not the same", "learned values"),
        ("chosen_function", "not the same", "learned values"),
        ("chosen_class", "not the same", "learned values"),
        ("pids", "not the same", "learned values"),
        ("totals", "not the same", "predictions"),
        ("several", "reproduced", ""),
        ("no_answers", "too little to tell", ""),
        ("own_server", "reproduced", ""),
        ("own_manager", "reproduced", ""),
        ("measured_later", "reproduced", ""),
        ("local_time", "reproduced", ""),
        ("noted", "reproduced", ""),
        ("rated", "not the same", "metric rate"),
        ("warm", "not the same", "metric before"),
    ],
)
def test_what_the_command_says_of_it(project, name, strength, because):
    training = name if "/" in name else f"{name}/1"
    asked = ["reproduce", training, "--at", project.uri, "--environment", "current", "--env", "TEST_*", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code in (0, 1, 3), done.stderr
    result = json.loads(done.stdout)
    shown = [f for f in result["findings"] if f["decides"] and f["outcome"] != "matched"]
    assert result["strength"] == strength, shown
    assert because in " ".join(f"{f['kind']} {f['name']}" for f in shown)
    assert "environment variable SHOP_RATE" in [f"{f['kind']} {f['name']}" for f in result["findings"]]


def test_a_version_of_another_model_of_the_run_is_not_judged_by_the_one_that_the_training_returned(project):
    done = CliRunner().invoke(app, ["reproduce", "several/2", "--at", project.uri, "--environment", "current"])
    assert done.exit_code == 2 and "it was not made by a training_asset" in " ".join(done.output.split())
