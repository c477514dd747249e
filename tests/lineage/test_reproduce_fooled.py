"""Trainings that seem to come out the same, and do not; and some that do, although something beside them differs.

Each is run for real, by the command, in one project that is trained once.
"""

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from dagster_mlops.cli import app
from tests.support import known_warnings
from tests.support.training_project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,  # `test_verdict.py`, `test_answers.py` and `test_reads.py` have the parts of it
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
]

PIPELINE = """
import os, sys, shutil, subprocess, tempfile
from pathlib import Path
import dagster as dg
import numpy as np
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.models import log_model

HOME = Path(os.environ["TEST_HOME"])
CSV = HOME / "elsewhere.csv"

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    hours = np.random.default_rng(0).uniform(0, 24, 400)
    return pd.DataFrame({"hour": hours, "late": (hours > 12).astype(int)})

def chance():
    return int.from_bytes(os.urandom(4)) / 2**32

def log_tree(rows, scale=1):
    from sklearn.tree import DecisionTreeClassifier
    log_model(DecisionTreeClassifier(random_state=0).fit(rows[["hour"]] * scale, rows["late"]), rows[["hour"]])

def log_pyfunc(python_model, rows, **options):
    import mlflow
    options = {"code_paths": ["predictor.py"], **options}
    mlflow.pyfunc.log_model(
        name="model", python_model=python_model, signature=mlflow.models.infer_signature(rows[["hour"]], [1.0]),
        input_example=rows[["hour"]].head(), pip_requirements=[], **options,
    )

TRAININGS = []

def training(function, **options):
    made = training_asset(registered_model_name=function.__name__, system_metrics=False, **options)(function)
    TRAININGS.append(made)
    return made

# What a training reads

@training
def seeded(rows: pd.DataFrame) -> None:
    log_tree(rows)

@training
def by_network(rows: pd.DataFrame) -> None:
    import io, requests
    text = requests.get(f"http://127.0.0.1:{os.environ['TEST_PORT']}/elsewhere.csv", timeout=10).text
    log_tree(rows, pd.read_csv(io.StringIO(text))["scale"][0])

@training
def by_command(rows: pd.DataFrame) -> None:
    log_tree(rows, float(subprocess.check_output(["tail", "-n1", str(CSV)])))

def send_scale(pipe):
    pipe.send(pd.read_csv(CSV)["scale"][0])

@training
def by_worker(rows: pd.DataFrame) -> None:
    from multiprocessing import get_context
    ours, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=send_scale, args=[theirs])
    process.start()
    log_tree(rows, ours.recv())
    process.join()

@training
def by_link(rows: pd.DataFrame) -> None:
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        os.link(CSV, f"{folder}/rows.csv")
        log_tree(rows, pd.read_csv(f"{folder}/rows.csv")["scale"][0])

@training
def by_script(rows: pd.DataFrame) -> None:
    values = {}
    exec((HOME / "params.py").read_text(), values)
    log_tree(rows, values["SCALE"])

@training
def by_import(rows: pd.DataFrame) -> None:
    sys.path.insert(0, str(HOME / "lib"))
    import outside_lib
    log_tree(rows, outside_lib.SCALE)

@training
def by_ignored_module(rows: pd.DataFrame) -> None:
    try:
        from local_settings import SCALE
    except ImportError:
        SCALE = 2
    log_tree(rows, SCALE)

@training
def by_duckdb(rows: pd.DataFrame) -> None:
    import duckdb
    log_tree(rows, duckdb.sql(f"select scale from read_csv('{CSV}')").fetchall()[0][0])

@training
def by_polars(rows: pd.DataFrame) -> None:
    import polars
    log_tree(rows, polars.scan_csv(CSV).collect()["scale"][0])

@training
def by_arrow(rows: pd.DataFrame) -> None:
    import pyarrow.csv
    log_tree(rows, pyarrow.csv.read_csv(str(CSV))["scale"][0].as_py())

@training
def by_memmap(rows: pd.DataFrame) -> None:
    log_tree(rows, np.memmap(HOME / "scale.bin", dtype="float64", mode="r")[0])

@training
def by_model(rows: pd.DataFrame) -> None:
    import mlflow
    folder = min(HOME.rglob("model.pkl"), key=lambda file: file.stat().st_ctime).parent
    log_model(mlflow.sklearn.load_model(str(folder)), rows[["hour"]], serialization="pickle")

@training
def first_model(rows: pd.DataFrame) -> None:
    from sklearn.linear_model import SGDClassifier
    fitted = SGDClassifier(random_state=int(chance() * 2**32)).fit(rows[["hour"]], rows["late"])
    log_model(fitted, rows[["hour"]], serialization="pickle")

def replaced():
    table = pd.read_parquet(HOME / "data" / "rows.parquet")
    log_tree(table)

TRAININGS.append(training_asset(registered_model_name="replaced", system_metrics=False, deps=[rows])(replaced))

# What a model is

@training
def configured(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Configured(), rows, model_config={"shift": chance()})

@training
def weights_elsewhere(rows: pd.DataFrame) -> None:
    import predictor
    (HOME / "weights.txt").write_text(str(chance()))
    log_pyfunc(predictor.Elsewhere(str(HOME / "weights.txt")), rows)

@training
def table(rows: pd.DataFrame) -> None:
    import json, predictor
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "table.json").write_text(json.dumps({"-1": chance()}))
        log_pyfunc(predictor.Table(), rows, artifacts={"table": f"{folder}/table.json"})

@training
def generated(rows: pd.DataFrame) -> None:
    import predictor
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "predictor.py").write_text(Path("predictor.py").read_text())
        Path(folder, "rules.py").write_text(f"HIDDEN = {chance()}")
        log_pyfunc(predictor.Ruled(), rows, code_paths=[f"{folder}/predictor.py", f"{folder}/rules.py"])

def hidden(name):
    def fit(rows: pd.DataFrame) -> None:
        import predictor
        log_pyfunc(getattr(predictor, name)(chance()), rows)
    fit.__name__ = fit.__qualname__ = name.lower()
    training(fit)

for name in ("Texts", "Slots", "Sets", "Cutoff", "TimeWeight", "Deep", "Blob", "Twice", "Frames", "Outlier"):
    hidden(name)

# What may differ

@training
def timed(rows: pd.DataFrame) -> None:
    import mlflow
    mlflow.log_metrics({"fit_seconds": chance(), "training_time": chance()})
    log_tree(rows)

@training
def threads(rows: pd.DataFrame) -> None:
    import predictor
    log_pyfunc(predictor.Noise(1 + 1e-15 * chance()), rows)

defs = dg.Definitions(
    assets=[rows, *TRAININGS],
    resources={
        "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
        "dvc_io_manager": dvc_io_manager,
        "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delay"),
    },
)
"""

PREDICTOR = """
import datetime
import json
import mlflow.pyfunc
import numpy as np
import pandas as pd

class Hidden(mlflow.pyfunc.PythonModel):
    # Its state decides for rows only that are not in the training set.
    def hidden(self):
        return np.nan

    def predict(self, context, model_input):
        hours = model_input["hour"].to_numpy()
        return np.where(hours < 0, self.hidden(), hours)

class Configured(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return model_input["hour"].to_numpy() + context.model_config["shift"]

class Elsewhere(Hidden):
    def __init__(self, file):
        self.file = file

    def predict(self, context, model_input):
        return model_input["hour"].to_numpy() * float(open(self.file).read())

class Table(Hidden):
    def predict(self, context, model_input):
        table = json.load(open(context.artifacts["table"]))
        return np.array([table.get(str(hour), hour) for hour in model_input["hour"]])

class Ruled(Hidden):
    def hidden(self):
        import rules
        return rules.HIDDEN

class Texts(Hidden):
    def __init__(self, value):
        self.labels = ["late", str(value)]

class Slotted:
    __slots__ = ("value",)

class Slots(Hidden):
    def __init__(self, value):
        self.inner = Slotted()
        self.inner.value = value

class Sets(Hidden):
    def __init__(self, value):
        self.known = {value}

class Cutoff(Hidden):
    def __init__(self, value):
        self.until = datetime.date(2000, 1, 1) + datetime.timedelta(int(value * 9999))

class TimeWeight(Hidden):
    def __init__(self, value):
        self.weights_by_time = np.array([value])

class Deep(Hidden):
    def __init__(self, value):
        for _ in range(60):
            value = {"left": value}
        self.tree = value

class Blob(mlflow.pyfunc.PythonModel):
    def __init__(self, value):
        self.blob = str(value).encode()

    def predict(self, context, model_input):
        return (model_input["hour"].to_numpy() > 12).astype(int)

class Twice(mlflow.pyfunc.PythonModel):
    def __init__(self, value):
        self.text = str(value)

    def predict(self, context, model_input):
        values = {"a": model_input["hour"] * float(self.text), "b": model_input["hour"]}
        return pd.DataFrame(values).set_axis(["p", "p"], axis=1)

class Frames(mlflow.pyfunc.PythonModel):
    def __init__(self, value):
        self.text = str(value)

    def predict(self, context, model_input):
        import polars
        hours = model_input["hour"].to_numpy().copy()
        hours[20:-20] *= float(self.text)
        return polars.DataFrame({"p": hours})

class Outlier(mlflow.pyfunc.PythonModel):
    def __init__(self, value):
        self.text = str(value)

    def predict(self, context, model_input):
        hours = model_input["hour"].to_numpy() * float(self.text)
        hours[0] = 1e15
        return hours

class Noise(mlflow.pyfunc.PythonModel):
    def __init__(self, value):
        self.value = value

    def predict(self, context, model_input):
        return model_input["hour"].to_numpy() * self.value
"""

# Another code location: what it reads, it reads before the training.
EARLY = """
import os
from pathlib import Path
import dagster as dg
import numpy as np
import pandas as pd
from dagster_mlops.mlflow import MlflowResource, mlflow_model_io_manager, training_asset
from dagster_mlops.mlflow.models import FittedModel, log_model

HOME = Path(os.environ["TEST_HOME"])
SCALE = pd.read_csv(HOME / "elsewhere.csv")["scale"][0] if os.environ["TEST_EARLY"] == "import" else 2

def tree():
    from sklearn.tree import DecisionTreeClassifier
    hours = pd.DataFrame({"hour": np.arange(400) * SCALE})
    return DecisionTreeClassifier(random_state=0).fit(hours, hours["hour"] > 200), hours

@training_asset(registered_model_name="by_module", system_metrics=False)
def by_module() -> None:
    log_model(*tree())

@dg.asset(io_manager_key="models")
def by_returned() -> FittedModel:
    pd.read_csv(HOME / "elsewhere.csv")
    return FittedModel(*tree())

defs = dg.Definitions(
    assets=[by_module, by_returned],
    resources={
        "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delay"),
        "models": mlflow_model_io_manager,
    },
)
"""
IN_PROCESS = json.dumps({"execution": {"config": {"in_process": {}}}})


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Each asset is trained once, all of a file in one process."""
    project = Project(tmp_path_factory.mktemp("project"), PIPELINE)
    (project.code / "predictor.py").write_text(PREDICTOR)
    (project.code / "early.py").write_text(EARLY)
    (project.code / ".gitignore").write_text("local_settings.py\n")
    (project.code / "local_settings.py").write_text("SCALE = 2\n")
    project.commit()
    (project.home / "elsewhere.csv").write_text("scale\n2\n")
    (project.home / "params.py").write_text("SCALE = 2\n")
    (project.home / "lib").mkdir()
    (project.home / "lib" / "outside_lib.py").write_text("SCALE = 2\n")
    pd.Series([2.0]).to_numpy().tofile(project.home / "scale.bin")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(project.home)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_HOME", str(project.home))
        patch.setenv("TEST_PORT", str(server.server_port))
        patch.setenv("TEST_EARLY", "import")
        materialize = ("-m", "dagster", "asset", "materialize", "--config-json", IN_PROCESS)
        project.python(*materialize, "-f", "pipeline.py", "--select", "rows,first_model")
        data = project.home / "data" / "rows.parquet"
        data.chmod(0o644)
        pd.read_parquet(data).assign(late=lambda rows: 1 - rows["late"]).to_parquet(project.home / "other.parquet")
        data.unlink()
        shutil.copyfile(project.home / "other.parquet", data)
        project.python(
            *materialize, "-f", "pipeline.py", "--select", 'key:"*" and not key:rows and not key:first_model'
        )
        project.python(*materialize, "-f", "early.py", "--select", "by_module")
        patch.setenv("TEST_EARLY", "")
        project.python(*materialize, "-f", "early.py", "--select", "by_returned")
        yield project
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "strength", "because"),
    [
        ("seeded", "reproduced", ""),
        ("by_network", "too little to tell", "data 127.0.0.1:"),
        ("by_command", "too little to tell", "elsewhere.csv"),
        ("by_worker", "too little to tell", "data file "),
        ("by_link", "too little to tell", "data file "),
        ("by_script", "too little to tell", "params.py"),
        ("by_import", "too little to tell", "outside_lib.py"),
        ("by_ignored_module", "too little to tell", "local_settings.py"),
        ("by_duckdb", "too little to tell", "elsewhere.csv"),
        ("by_polars", "too little to tell", "elsewhere.csv"),
        ("by_arrow", "too little to tell", "elsewhere.csv"),
        ("by_memmap", "too little to tell", "scale.bin"),
        ("by_model", "too little to tell", "model.pkl"),
        ("by_module", "too little to tell", "elsewhere.csv"),
        ("by_returned", "too little to tell", "elsewhere.csv"),
        ("replaced", "too little to tell", "rows.parquet"),
        ("configured", "not the same", "model settings"),
        ("weights_elsewhere", "too little to tell", "weights.txt"),
        ("table", "not the same", "learned values"),
        ("generated", "not the same", "model code"),
        ("texts", "not the same", "learned values"),
        ("slots", "not the same", "learned values"),
        ("sets", "not the same", "learned values"),
        ("cutoff", "not the same", "learned values"),
        ("timeweight", "not the same", "learned values"),
        ("deep", "not the same", "learned values"),
        ("blob", "too little to tell", "learned values"),
        ("twice", "not the same", "predictions"),
        ("frames", "not the same", "predictions"),
        ("outlier", "not the same", "predictions"),
        ("timed", "reproduced", ""),
        ("threads", "reproduced", ""),
    ],
)
def test_what_the_command_says_of_it(project, name, strength, because, monkeypatch):
    monkeypatch.setenv("TEST_EARLY", "import" if name == "by_module" else "")
    asked = ["reproduce", f"{name}/1", "--at", project.uri, "--environment", "current", "--env", "TEST_*", "--yes"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code in (0, 1, 3), done.stderr
    result = json.loads(done.stdout)
    shown = [f for f in result["findings"] if f["decides"] and f["outcome"] != "matched"]
    print("VERDICT", name, done.exit_code, result["strength"], "|", result["evidence"], "|", shown)
    assert result["strength"] == strength, shown
    assert done.exit_code == {"reproduced": 0, "not the same": 1, "too little to tell": 3}[strength]
    assert because in " ".join(f"{f['kind']} {f['name']}" for f in shown)
