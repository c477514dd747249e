"""A promotion, a verification and a look into the past, in a registry of 2,000 versions with 10,000 entries of history.

MLflow is a SQLite file, and Dagster's event log has a materialization for each entry. Beside the promotion: what it
costs in a registry with two versions and no past. What commands do is timed in a new process, as commands run.
"""

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dagster as dg
from mlflow.entities import Metric, Param

from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.registry import history
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.entry import PROMOTION, Entry
from dagster_mlops.promotion.history.envelope import (
    HEAD,
    SIGNING_KEY,
    STATEMENT,
    new_key,
    seal,
    signing_key,
    trusted_keys,
)
from dagster_mlops.promotion.history.event_log import Mirror, part_metadata
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.promotion.history.merkle import Tree
from dagster_mlops.promotion.history.verification import Held, Store, verify
from dagster_mlops.promotion.moves import promote_version
from dagster_mlops.promotion.rules.improvement import Improvement
from tests.benchmarks.measure import show

VERSIONS, ENTRIES = 2_000, 10_000
KEY = dg.AssetKey("champion")
ROWS = [
    {"rule": "better auc", "verdict": "holds", "candidate": "0.8123", "champion": "0.8001", "limit": "0.002",
     "why": "auc 0.8123 against 0.8001: improvement 0.0122; p = 0.0002 (DeLong), 0.00096 or less shows a difference"},
] * 4  # fmt: skip


def registry(models: MlflowModels, name: str, versions: int) -> None:
    """A model with so many versions, of which the last two have a metric."""
    models.client.create_registered_model(name)
    runs = [models.client.create_run("0").info.run_id for _ in range(2)]
    for order, run in enumerate(runs):
        models.client.log_batch(run, metrics=[Metric("auc", 0.7 + order / 10, 0, 0)])
    for number in range(versions):
        models.client.create_model_version(name, f"/models/{name}", runs[number == versions - 1])


def write_past(models: MlflowModels, instance: dg.DagsterInstance, name: str) -> None:
    """The entries, in both places: in MLflow by its batches, which take fewer requests than the promoters' own."""
    client, tree, key, params, head, after = models.client, Tree(), signing_key(), [], "", ""
    run_id = history._new_run(client, name)
    history._name_run(client, name, run_id)
    for number in range(ENTRIES):
        before, after = (str(each % (VERSIONS - 1) + 1) for each in (number, number + 1))
        facts = {"gate": ROWS, "values": {"candidate": 0.8}, "dagster_run_id": "0" * 36, "dagster_asset": "champion"}
        when = f"{2000 + number // 20}-01-01"
        entry = Entry(
            number, PROMOTION, name, "champion", before if number else "", after, when, "schedule weekly", "better",
            tree.root(), "", facts,
        )  # fmt: skip
        text = seal(STATEMENT, entry.statement(), key)
        params.append(Param(f"{number:08d}", f"{history._hash(text)} 1 {text}"))
        tree.append(text.encode())
        head = seal(HEAD, {"model": name, "size": tree.size, "root": tree.root()}, key)
        part = {"model": name, "first": number, "entries": [text], "head": head}
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata=part_metadata("mlflow", part)))
    for first in range(0, ENTRIES, 100):
        client.log_batch(run_id, params=params[first : first + 100])
    models.keep_head(name, head)
    client.set_registered_model_alias(name, "champion", after)


def promotion(models: MlflowModels, name: str, version: str) -> float:
    """Seconds of a promotion, with the mirror's look into the event log left out."""
    candidate = models.version(name, version)
    judge = Gate([Improvement(metric="auc")], Case(models, candidate)).judge
    start = time.perf_counter()
    promote_version(models, candidate, "champion", judge, Author("benchmark"))
    return time.perf_counter() - start


def open_models(scratch: str) -> MlflowModels:
    """MLflow in a folder."""
    resource = MlflowResource(tracking_uri=f"sqlite:///{Path(scratch, 'mlflow.db')}")
    return MlflowModels(resource, resource.client())


def commands(scratch: str) -> dict[str, float]:
    """Seconds of what `history` and `history verify` do, without their imports."""
    seconds = {}

    def timed(title: str, act: Any) -> Any:
        start = time.perf_counter()
        result = act()
        seconds[title] = time.perf_counter() - start
        return result

    with dg.DagsterInstance.local_temp(scratch) as instance:
        models, mirror = open_models(scratch), Mirror(instance, KEY, "mlflow", "large")
        held = Held(models.version("large", "@champion").version, "")
        texts = timed("entries read from MLflow", lambda: models.history("large"))
        copies = timed("entries read from Dagster's event log", mirror.history)
        stores = [Store("mlflow", {n: [text] for n, text in texts.items()}, [models.head("large")])]
        stores.append(Store("dagster", copies, mirror.heads()))
        result = timed(
            f"{ENTRIES:,} entries of both verified", lambda: verify("large", stores, {"champion": held}, trusted_keys())
        )
        assert result.holds, result.findings[:3]
        moves = timed("moves read, as `history` shows them", lambda: moves_of(models, "large", "champion"))
        assert len(moves) == ENTRIES
    return seconds


def run(rounds: int | None = None) -> dict[str, Any]:
    """All of it, with each entry signed."""
    os.environ[SIGNING_KEY] = new_key()[0]
    with tempfile.TemporaryDirectory() as scratch:
        models = open_models(scratch)
        registry(models, "small", 2)
        registry(models, "large", VERSIONS)
        with dg.DagsterInstance.local_temp(scratch) as instance:
            write_past(models, instance, "large")
        promotion(models, "small", "1")
        small = promotion(models, "small", "2")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds = process.submit(commands, scratch).result()
        large = promotion(models, "large", str(VERSIONS))
        seconds[f"a promotion, {VERSIONS:,} versions and {ENTRIES:,} entries"] = large
        seconds["a promotion, 2 versions and 1 entry"] = small
        show("History of a model", ["", "seconds"], [(name, f"{value:.2f}") for name, value in seconds.items()])
    return seconds
