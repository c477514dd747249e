"""Each model runs the modules that it brings, whatever another model or the process has imported by the same names."""

import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import sklearn.base

from dagster_mlops.core.model_code import ModelCode
from dagster_mlops.core.model_loading import LoadedModel, load_stored
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import StoredModel
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, pytest.mark.filterwarnings("ignore:.*type hints to the `predict` method")]

ROWS = pd.DataFrame({"hour": [1.0, 2.0]})
MODEL = """
import mlflow.pyfunc
{head}
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        {body}
"""
# Files of the model's code; each answers with SIGN.
SHAPES = {
    "module": {
        "shop_model.py": MODEL.format(head="import shop_rules", body="return model_input.hour * shop_rules.SIGN"),
        "shop_rules.py": "SIGN = {sign}",
    },
    "import in a function": {
        "shop_model.py": MODEL.format(
            head="", body="import shop_rules; from shop_rules import SIGN; return model_input.hour * SIGN"
        ),
        "shop_rules.py": "SIGN = {sign}",
    },
    "import by name": {
        "shop_model.py": MODEL.format(
            head="import importlib",
            body="return model_input.hour * importlib.import_module('shop_rules').SIGN",
        ),
        "shop_rules.py": "SIGN = {sign}",
    },
    "package": {
        "shop_model/__init__.py": "from .wrapper import Model",
        "shop_model/wrapper.py": MODEL.format(
            head="from . import signs", body="return signs.applied(model_input.hour)"
        ),
        "shop_model/signs.py": "def applied(values):\n    from .deep.value import SIGN\n    return values * SIGN",
        "shop_model/deep/value.py": "SIGN = {sign}",
    },
    "file beside the code": {
        "shop_model.py": MODEL.format(
            head="from pathlib import Path",
            body="return model_input.hour * float(Path(__file__).with_name('sign.txt').read_text())",
        ),
        "sign.txt": "{sign}",
    },
}


def write(folder: Path, files: dict[str, str], sign: int) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("{sign}", str(sign)))


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("shop_")]:
        del sys.modules[name]


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Stores a model whose code is these files, and loads it as the verbs do."""

    def make(name: str, files: dict[str, str], sign: int, *, module: str = "shop_model") -> LoadedModel:
        code, folder = tmp_path / f"{name}_code", tmp_path / name
        write(code, files, sign)
        # Stored by a process that has imported these modules: this one, for a moment.
        own = ModelCode([code])
        with own.active():
            model: Any = __import__(module).Model()
            mlflow.pyfunc.save_model(
                str(folder), python_model=model, code_paths=[str(path) for path in code.iterdir()], pip_requirements=[]
            )
        return load(folder)

    return make


def load(folder: Path, *, pyfunc: bool = True) -> LoadedModel:
    version = ModelVersion(name="shop", version="1", run_id="r", tracking_uri="u")

    def fetch(place: Path) -> StoredModel:
        import shutil

        return StoredModel.read(Path(shutil.copytree(folder, place / "model")), version)

    return load_stored(fetch, pyfunc=pyfunc, allow_pickle=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_models_with_modules_of_one_name_each_run_their_own(save, tmp_path, shape):
    (tmp_path / "process").mkdir()
    (tmp_path / "process" / "shop_rules.py").write_text("SIGN = 100\n")
    sys.path.insert(0, str(tmp_path / "process"))
    own: Any = __import__("shop_rules")
    first, second = save("first", SHAPES[shape], 1), save("second", SHAPES[shape], -1)
    for _ in range(2):
        assert list(first.model.predict(ROWS)) == [1.0, 2.0]
        assert list(second.model.predict(ROWS)) == [-1.0, -2.0]
    assert sys.modules["shop_rules"] is own and "shop_model" not in sys.modules
    assert not [place for place in sys.path if "dagster-mlops-model" in place]


def test_a_model_as_it_was_logged_keeps_its_modules_after_it_was_loaded(tmp_path):
    # The object itself, which no wrapper calls: its class and what the class imports later.
    files = {
        "shop_steps.py": "import sklearn.base\n\n"
        "class Scaled(sklearn.base.RegressorMixin, sklearn.base.BaseEstimator):\n"
        "    def fit(self, X, y=None):\n        self.n_features_in_ = 1\n        return self\n\n"
        "    def predict(self, X):\n        from shop_scale import SCALE\n        return X['hour'] * SCALE\n",
        "shop_scale.py": "SCALE = {sign}\n",
    }
    loaded = []
    for name, sign in (("first", 1), ("second", -1)):
        code = tmp_path / f"{name}_code"
        write(code, files, sign)
        with ModelCode([code]).active():
            module: Any = __import__("shop_steps")
            model = module.Scaled().fit(ROWS)
            mlflow.sklearn.save_model(  # pyright: ignore[reportPrivateImportUsage]
                model, str(tmp_path / name), code_paths=[str(p) for p in code.iterdir()], pip_requirements=[],
                serialization_format="cloudpickle",
            )  # fmt: skip
        loaded.append(load(tmp_path / name, pyfunc=False).model)
    clones: list[Any] = [sklearn.base.clone(model) for model in loaded]
    assert [list(model.predict(ROWS)) for model in loaded] == [[1.0, 2.0], [-1.0, -2.0]]
    assert [list(clone.fit(ROWS).predict(ROWS)) for clone in clones] == [[1.0, 2.0], [-1.0, -2.0]]


def test_the_same_files_are_the_modules_of_the_process(save, tmp_path):
    files = SHAPES["package"]
    write(tmp_path / "process", files, 1)
    sys.path.insert(0, str(tmp_path / "process"))
    own: Any = __import__("shop_model")
    assert type(save("same", files, 1).model.unwrap_python_model()) is own.Model
    other = save("other", files, -1)
    assert type(other.model.unwrap_python_model()) is not own.Model
    assert list(other.model.predict(ROWS)) == [-1.0, -2.0]


@pytest.mark.parametrize("code", ["../elsewhere", "/", "code/../../elsewhere", "link"])
def test_a_model_brings_no_code_from_outside_of_its_folder(tmp_path, code):
    (tmp_path / "elsewhere").mkdir()
    (folder := tmp_path / "model").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "MLmodel").write_text(f"flavors: {{python_function: {{code: {code}}}}}")
    with pytest.raises(DagsterMlopsError, match="not read and not written"):
        ModelCode.of(folder)
