"""Small models of the libraries that have a format of their own, each with the input to log it with.

Projects of tests take a copy of this file, so it imports nothing of the tests.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any


def xgboost(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    return _library("xgboost").XGBClassifier(n_estimators=3, subsample=0.5, random_state=seed).fit(X, y), X


def xgboost_booster(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    xgboost = _library("xgboost")
    return xgboost.train({"subsample": 0.5, "seed": seed}, xgboost.DMatrix(X, y), 3), X


def xgboost_pipeline(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    return _scaled(xgboost(X, y, seed)[0]).fit(X, y), X


def lightgbm(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    lightgbm = _library("lightgbm")
    sampled = {"subsample": 0.5, "subsample_freq": 1}
    return lightgbm.LGBMRegressor(n_estimators=3, verbose=-1, random_state=seed, **sampled).fit(X, y), X


def lightgbm_booster(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    lightgbm = _library("lightgbm")
    options = {"bagging_fraction": 0.5, "bagging_freq": 1, "verbose": -1, "seed": seed}
    return lightgbm.train(options, lightgbm.Dataset(X, y), 3), X


def lightgbm_pipeline(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    return _scaled(lightgbm(X, y, seed)[0]).fit(X, y), X


def catboost(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    options = {"iterations": 3, "verbose": 0, "allow_writing_files": False, "random_seed": seed}
    return _library("catboost").CatBoostClassifier(**options).fit(X, y), X


def catboost_pipeline(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    return _scaled(catboost(X, y, seed)[0]).fit(X, y), X


def torch(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    torch = _library("torch")
    nn = torch.nn
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(X.shape[1], 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    inputs, answers = (torch.tensor(values.to_numpy("float32")) for values in (X, y))
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy(network(inputs)[:, 0], answers).backward()
        optimizer.step()
    return network, X.to_numpy("float32")


def keras(X: Any, y: Any, seed: int) -> tuple[Any, Any]:
    keras = _library("keras")
    layer = keras.layers
    keras.utils.set_random_seed(seed)
    hidden = [layer.Dense(4, activation="relu"), layer.Dropout(0.1)]
    network = keras.Sequential([keras.Input((X.shape[1],)), *hidden, layer.Dense(1, activation="sigmoid")])
    network.compile(loss="binary_crossentropy")
    network.fit(X.to_numpy(), y.to_numpy(), epochs=2, verbose=0)
    return network, X.to_numpy("float32")


def _library(name: str) -> Any:
    """Without the types of a library, which may be installed or not."""
    return importlib.import_module(name)


def _scaled(model: Any) -> Any:
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), clone(model))


FITS: dict[str, Callable[[Any, Any, int], tuple[Any, Any]]] = {
    "xgboost": xgboost, "xgboost_booster": xgboost_booster, "xgboost_pipeline": xgboost_pipeline,
    "lightgbm": lightgbm, "lightgbm_booster": lightgbm_booster, "lightgbm_pipeline": lightgbm_pipeline,
    "catboost": catboost, "catboost_pipeline": catboost_pipeline, "torch": torch, "keras": keras,
}  # fmt: skip


def installed(kind: str) -> bool:
    """True if the library of this kind is installed; Keras computes with PyTorch here."""
    return bool(importlib.util.find_spec(kind.partition("_")[0]))
