"""Scikit-learn's estimators are stored without a word about types, and types that run text are not trusted."""

import contextlib
import importlib
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import skops.io
import yaml
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import all_estimators
from sklearn.utils._test_common.instance_generator import _construct_instances

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_formats import untrusted
from dagster_mlops.core.model_loading import load_stored
from dagster_mlops.core.trusted_types import TRUSTED_TYPES
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import StoredModel
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]

RNG = np.random.default_rng(0)
X, Y = RNG.random((60, 4)), np.arange(60) % 2
WORDS = np.array([["a", "b"], ["c", "d"]] * 30)
INPUTS: list[tuple[Any, ...]] = [
    (X, Y), (X, X[:, :2]), (X, np.c_[Y, 1 - Y]), (X[:, 0], Y), (X, X[:, 1] + 0.1), (X[:, 0], X[:, 1] + 0.1),
    (["old news", "new songs"] * 30, Y), (["old news", "new songs"] * 30,), ([{"a": 1}, {"b": 2}] * 30, Y),
    (Y,), ([[1, 2], [3]],), (X @ X.T, Y), (X @ X.T,), (WORDS, Y),
]  # fmt: skip
# Without a method to predict for, or made of what skops itself refuses.
NOT_STORED = {"Birch", "FrozenEstimator", "SparseCoder"}


def _fitted(estimator: Any) -> Any:
    for arguments in INPUTS:
        with contextlib.suppress(Exception):
            copy: Any = clone(estimator)
            return copy.fit(*arguments)
    return None


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_every_estimator_of_scikit_learn_is_made_of_trusted_types():
    foreign, unfitted = defaultdict(set), set()
    for name, estimator in all_estimators():
        if name in NOT_STORED:
            continue
        found = [fitted for one in _construct_instances(estimator) if (fitted := _fitted(one)) is not None]
        if not found:
            unfitted.add(name)
        for fitted in found:
            for missing in untrusted(skops.io.get_untrusted_types(data=skops.io.dumps(fitted))):
                foreign[missing].add(name)
    assert not foreign
    assert not unfitted, "give them something to fit, above"


def test_every_trusted_type_is_there_and_none_holds_a_function_of_the_writer():
    for name in TRUSTED_TYPES:
        module, _, kind = name.rpartition(".")
        if module.partition(".")[0] in ("numpy", "scipy", "sklearn"):
            assert hasattr(importlib.import_module(module), kind), name
    assert not [name for name in TRUSTED_TYPES if "PyFunc" in name or name.endswith((".apply", ".vectorize"))]


class Shifted(StandardScaler):
    """Somebody's own."""


def _store(folder: Path, model: Any, **claims: Any) -> Path:
    """A model as its folder, whose MLmodel file claims what it likes."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skops.io.dump(model, folder / "model.skops")
    types = skops.io.get_untrusted_types(file=folder / "model.skops")
    sklearn = {"pickled_model": "model.skops", "serialization_format": "skops", "skops_trusted_types": types, **claims}
    served = {"loader_module": "mlflow.sklearn", "model_path": "model.skops"}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"sklearn": sklearn, "python_function": served}}))
    return folder


def _load(folder: Path, **options: Any) -> Any:
    version = ModelVersion(name="model", version="1", tracking_uri="sqlite://")
    return load_stored(lambda _: StoredModel.read(folder, version), **options).model


def _hostile(folder: Path) -> Any:
    """A scaler with a distribution of scipy, whose state holds text that scipy runs when it is set."""
    text = f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()"
    state = {**scipy.stats.norm.__getstate__(), "_parse_arg_template": text}
    distribution = type(scipy.stats.norm).__new__(type(scipy.stats.norm))
    distribution.__dict__.update(state)
    model: Any = StandardScaler().fit(X)
    model.drift_ = distribution
    return model


@pytest.mark.parametrize("claims", [{}, {"skops_trusted_types": ["numpy.dtype"]}, {"skops_trusted_types": []}])
@pytest.mark.parametrize("pyfunc", [True, False])
def test_text_in_the_state_of_a_distribution_of_scipy_is_not_run(tmp_path, claims, pyfunc):
    folder = _store(tmp_path / "model", _hostile(tmp_path), **claims)
    with pytest.raises(ModelVersionError, match=r"it names scipy\.stats\.\S*norm_gen, which may be more than data"):
        _load(folder, pyfunc=pyfunc)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "model",
    [
        Shifted().fit(X),
        make_pipeline(FunctionTransformer(np.loadtxt), LogisticRegression()),
        make_pipeline(FunctionTransformer(np.ma.apply_along_axis), LogisticRegression()),
    ],
    ids=["own", "reads a file", "calls another"],
)
def test_the_list_in_the_models_own_file_is_not_believed(tmp_path, model):
    folder = _store(tmp_path / "model", model)
    with pytest.raises(ModelVersionError, match="which may be more than data"):
        _load(folder)
    stored = yaml.safe_load((folder / "MLmodel").read_text())
    assert stored["flavors"]["sklearn"]["skops_trusted_types"], "it lists them"


def test_the_wrapper_loads_the_file_that_was_judged(tmp_path):
    folder = _store(tmp_path / "model", StandardScaler().fit(X))
    skops.io.dump(_hostile(tmp_path), tmp_path / "hostile.skops")
    (tmp_path / "hostile.skops").rename(folder / "hostile.bin")
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["python_function"]["data"] = "hostile.bin"
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(ModelVersionError, match=r"hostile\.bin.* is not what its flavour sklearn names"):
        _load(folder, pyfunc=True)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_takes_in_the_next_one_is_another_model(tmp_path):
    folder = _store(tmp_path / "model", StandardScaler().fit(X))
    (folder / "requirements.txt").write_text("scikit-learn==1.7\n")
    sha256 = model_digest(folder)
    with (folder / "model.skops").open("ab") as file:
        file.write(b"requirements.txt\0" + (folder / "requirements.txt").read_bytes())
    (folder / "requirements.txt").unlink()
    assert model_digest(folder) != sha256


def test_a_second_skops_file_is_judged_as_the_first(tmp_path):
    folder = _store(tmp_path / "model", StandardScaler().fit(X))
    assert _load(folder).mean_ is not None
    skops.io.dump(_hostile(tmp_path), folder / "other.skops")
    with pytest.raises(ModelVersionError, match="norm_gen"):
        _load(folder)


def test_a_skops_file_that_is_none_is_named(tmp_path):
    folder = _store(tmp_path / "model", StandardScaler().fit(X))
    (folder / "model.skops").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelVersionError, match="skops file of the model cannot be read"):
        _load(folder)
