"""``python -m tests.benchmarks.trainings WORKLOAD SIDE``: one training, bare, tracked by hand, or as a training asset.

Prints the seconds that it took once everything was imported, and those of its loop alone, as JSON. ``TRACKING_URI``
says where MLflow is, ``EFFORT`` multiplies the work.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import mlflow
import numpy as np
from mlflow.models import infer_signature

from assets.data import source_table
from dagster_mlops.mlflow import MlflowResource, training_asset

Log = Callable[[dict[str, float], int], Any]
EFFORT = float(os.environ.get("EFFORT", "1"))


class Workload(NamedTuple):
    """What is trained: by `train`, which reports metrics as it goes, and stored by `save` in MLflow's active run."""

    name: str
    params: dict[str, Any]
    train: Callable[[Log], Any]
    save: Callable[[Any], Any]


# --- the three sides


def bare(work: Workload) -> None:
    work.train(lambda metrics, step: None)


def by_hand(work: Workload) -> None:
    mlflow.set_tracking_uri(os.environ["TRACKING_URI"])
    mlflow.set_experiment(work.name)
    with mlflow.start_run(run_name=work.name):
        mlflow.log_params(work.params)
        model = work.train(lambda metrics, step: mlflow.log_metrics(metrics, step))
        info = work.save(model)
        mlflow.register_model(info.model_uri, work.name)


def in_dagster_by_hand(work: Workload) -> None:
    @dg.asset
    def model() -> None:
        by_hand(work)

    _materialize(model)


def tracked(work: Workload) -> None:
    @training_asset(registered_model_name=work.name, experiment=work.name)
    def model() -> None:
        mlflow.log_params(work.params)
        model = work.train(lambda metrics, step: mlflow.log_metrics(metrics, step))
        work.save(model)

    _materialize(model, mlflow=MlflowResource(tracking_uri=os.environ["TRACKING_URI"]))


def _materialize(asset: dg.AssetsDefinition, **resources: Any) -> None:
    dg.materialize([asset], instance=dg.DagsterInstance.get(), resources=resources)


# --- the workloads


def nothing() -> Workload:
    """A logistic regression on 200 rows: what is left is the tracking."""
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).normal(size=(200, 4))

    def train(log: Log) -> Any:
        model = LogisticRegression().fit(rows, rows[:, 0] > 0)
        log({"accuracy": float(model.score(rows, rows[:, 0] > 0))}, 0)
        return model

    return Workload("nothing", {"rows": 200}, train, lambda model: _save_sklearn(model, rows[:3]))


def forest() -> Workload:
    """A random forest on a year of flights: will it be late?"""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    flights = source_table("flights").dropna(subset=["arr_delay"])
    columns = ["month", "day", "sched_dep_time", "sched_arr_time", "flight", "distance", "hour", "minute"]
    codes = {name: flights[name].astype("category").cat.codes for name in ("carrier", "origin", "dest")}
    rows: Any = flights[columns].assign(**codes).to_numpy("float32")
    late = (flights["arr_delay"] > 15).to_numpy()
    held = np.arange(len(rows)) % 5 == 0
    params = {"trees": round(260 * EFFORT), "min_samples_leaf": 100, "random_state": 7}

    def train(log: Log) -> Any:
        model: Any = RandomForestClassifier(0, min_samples_leaf=100, random_state=7, warm_start=True)
        for step, trees in enumerate(_parts(params["trees"], 12)):
            model.set_params(n_estimators=trees)
            model.fit(rows[~held], late[~held])
            log({"auc": float(roc_auc_score(late[held], model.predict_proba(rows[held])[:, 1]))}, step)
        return model

    return Workload("forest", params, train, lambda model: _save_sklearn(model, rows[:3]))


def cnn() -> Workload:
    """The network of the PyTorch example on scikit-learn's digits, wider."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gpu_training"))
    import torch  # pyright: ignore[reportMissingImports]
    from digits.network import (  # pyright: ignore[reportMissingImports]
        Digits,
        accuracy,
        batches,
        train_one_epoch,
    )
    from sklearn.datasets import load_digits

    pixels, answers = map(np.asarray, load_digits(return_X_y=True))
    pixels = pixels.astype("float32")
    params = {"epochs": round(190 * EFFORT), "channels": 64, "batch_size": 32, "learning_rate": 0.0005}

    def train(log: Log) -> Any:
        _torch_alone(torch)
        model = Digits(params["channels"])
        optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
        loader = batches(pixels[:-360], answers[:-360], size=params["batch_size"])
        for epoch in range(params["epochs"]):
            loss = train_one_epoch(model, optimizer, loader)
            log({"loss": loss, "accuracy": accuracy(model, pixels[-360:], answers[-360:])}, epoch)
        return model

    return Workload("cnn", params, train, lambda model: _save_torch(model, pixels[:3]))


def text() -> Workload:
    """A transformer of a million parameters that learns to spell from Python's own help texts."""
    from pydoc_data.topics import topics

    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    data = torch.tensor(list("\n".join(topics.values()).encode()), dtype=torch.long)
    params = {"steps": round(270 * EFFORT), "width": 128, "layers": 5, "context": 128, "batch_size": 16}

    class Speller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width, context = params["width"], params["context"]
            self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, params["layers"], enable_nested_tensor=False)
            self.head = nn.Linear(width, 256)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

        def forward(self, read: torch.Tensor) -> torch.Tensor:
            seen = self.bytes(read) + self.places(torch.arange(read.shape[1]))
            return self.head(self.layers(seen, mask=self.mask, is_causal=True))

    def train(log: Log) -> Any:
        _torch_alone(torch)
        model, chance = Speller(), torch.Generator().manual_seed(7)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(params["steps"]):
            starts = torch.randint(len(data) - params["context"] - 1, (params["batch_size"],), generator=chance)
            windows = torch.stack([data[start : start + params["context"] + 1] for start in starts])
            loss = nn.functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                log({"loss": loss.item()}, step)
        return model

    return Workload("text", params, train, lambda model: _save_torch(model, data[:128].reshape(1, -1).numpy()))


def _torch_alone(torch: Any) -> None:
    # One thread: two of them on two cores measure what else runs there.
    torch.set_num_threads(1)
    torch.manual_seed(7)


def _parts(total: int, count: int) -> Iterable[int]:
    return sorted({max(1, round(total * part / count)) for part in range(1, count + 1)})


def _save_sklearn(model: Any, example: Any) -> Any:
    return mlflow.sklearn.log_model(  # pyright: ignore[reportPrivateImportUsage]
        model,
        name="model",
        signature=infer_signature(example, model.predict(example)),
        input_example=example,
        pip_requirements=["scikit-learn"],
        serialization_format="cloudpickle",
    )


def _save_torch(model: Any, example: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    model = model.eval()
    return mlflow.pytorch.log_model(  # pyright: ignore[reportPrivateImportUsage]
        model,
        name="model",
        signature=infer_signature(example, model(torch.from_numpy(example)).detach().numpy()),
        input_example=example,
        pip_requirements=["torch"],
        serialization_format="pickle",
    )


WORKLOADS = {"nothing": nothing, "forest": forest, "cnn": cnn, "text": text}
SIDES = {"bare": bare, "by hand": by_hand, "in Dagster by hand": in_dagster_by_hand, "training_asset": tracked}


def main() -> None:
    workload, side = sys.argv[1:]
    work, inside = WORKLOADS[workload](), []

    def train(log: Log) -> Any:
        begun = time.perf_counter()
        model = work.train(log)
        inside.append(time.perf_counter() - begun)
        return model

    # Loaded by then, whichever side it is: the flavours of MLflow.
    _ = mlflow.sklearn.log_model, mlflow.register_model  # pyright: ignore[reportPrivateImportUsage]
    with dg.DagsterInstance.get() as instance:  # there before a step begins
        instance.get_runs_count()
        started = time.perf_counter()
        SIDES[side](work._replace(train=train))
        print(json.dumps({"seconds": time.perf_counter() - started, "loop": inside[0]}))


if __name__ == "__main__":
    main()
