"""What the plain script does to each tool, with the tool's own API."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from assets.data import DataFrame
from assets.monitoring import WATCHED
from resources import FEATURE_REPO, STATE
from tests.benchmarks.measure import cpu_of_state

SERVICE = "arrival_delay"
SAMPLE = 50_000  # rows of an Evidently report, as in the code location


class Clock:
    """Seconds and CPU seconds per stage, and within a stage the seconds per tool."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._parts: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._parts, start, cpu = defaultdict(float), time.perf_counter(), cpu_of_state(STATE)
        yield
        seconds = time.perf_counter() - start
        self.stages[name] = {"seconds": seconds, "cpu": cpu_of_state(STATE) - cpu, **self._parts}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        self._parts[name] += time.perf_counter() - start


clock = Clock()


class Data:
    """A git + DVC repository with a remote in a folder."""

    def __init__(self, root: Path, remote: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        remote.mkdir(parents=True)
        with clock.part("dvc"):
            from dvc.repo import Repo

            subprocess.run(["git", "init", "-q", str(root)], check=True)
            Repo.init(str(root)).close()
            (root / ".dvc" / "config.local").write_text(
                f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {remote}\n"
            )
            self.repo: Any = Repo(str(root))
            self._commit("Start", ".dvc", ".dvcignore")

    def store(self, frame: DataFrame, path: str) -> None:
        with clock.part("dvc"):
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(file, index=False, coerce_timestamps="us", compression="zstd")
            self.repo.add(str(file))
            self._commit(f"Store {path}", f"{path}.dvc", str(Path(path).parent / ".gitignore"))
            self.repo.push(targets=[str(file)])

    def _commit(self, message: str, *paths: str) -> None:
        subprocess.run(["git", "-C", str(self.root), "add", *paths], check=True)
        subprocess.run(["git", "-C", str(self.root), "commit", "-q", "-m", message], check=True)


class Features:
    """The Feast repository: applied once, materialized view by view, read through its service."""

    def __init__(self) -> None:
        with clock.part("feast"):
            (STATE / "feast").mkdir()
            feast = str(Path(sys.executable).with_name("feast"))
            subprocess.run([feast, "--chdir", FEATURE_REPO, "apply"], check=True, capture_output=True)
            from feast import FeatureStore

            self.store = FeatureStore(repo_path=FEATURE_REPO)

    def materialize(self, view: str, start: datetime, end: datetime) -> None:
        with clock.part("feast"):
            self.store.materialize(start, end, feature_views=[view])

    def historical(self, entities: DataFrame) -> DataFrame:
        with clock.part("feast"):
            asked = entities.assign(row=range(len(entities)))
            service = self.store.get_feature_service(SERVICE)
            found = self.store.get_historical_features(entity_df=asked, features=service).to_df()
            return found.sort_values("row", ignore_index=True).drop(columns="row")

    def online_differs(self, view: str, until: datetime) -> int:
        """How many values of up to 1,000 entities of a view are served otherwise than they are in its table."""
        with clock.part("feast"):
            found = self.store.get_feature_view(view)
            [key], names = found.join_keys, [feature.name for feature in found.features]
            files = sorted((STATE / "data" / "source" / view).glob("*.parquet"))
            table: DataFrame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
            known = table[table["event_timestamp"] <= until].sort_values("event_timestamp", kind="stable")
            latest = known.drop_duplicates(key, keep="last")[[key, "event_timestamp"]].dropna()
            asked = latest.sample(min(1000, len(latest)), random_state=0)
            references = [f"{view}:{name}" for name in names]
            offline = self.store.get_historical_features(entity_df=asked, features=references).to_df()
            rows = [{key: value} for value in offline[key]]
            online = pd.DataFrame(self.store.get_online_features(features=references, entity_rows=rows).to_dict())
            a, b = offline[names].astype(float), online[names].astype(float)
            return int((~((a - b).abs().le(1e-6 * a.abs().clip(lower=1)) | (a.isna() & b.isna()))).to_numpy().sum())


class Reports:
    """Evidently reports, saved as HTML and JSON."""

    def quality(self, frame: DataFrame, name: str) -> None:
        with clock.part("evidently"):
            from evidently.presets import DataSummaryPreset

            wanted = [c for c in frame.columns if frame[c].dtype.kind in "ifO" and frame[c].notna().any()]
            self._save([DataSummaryPreset(columns=wanted)], self._dataset(frame[wanted]), None, f"quality-{name}")

    def drift(self, frame: DataFrame, reference: DataFrame) -> float:
        with clock.part("evidently"):
            from evidently.presets import DataDriftPreset

            preset = DataDriftPreset(
                columns=WATCHED, num_method="psi", num_threshold=0.2, cat_method="jensenshannon", cat_threshold=0.1
            )
            found = self._save([preset], self._dataset(frame[WATCHED]), self._dataset(reference[WATCHED]), "drift")
            [count] = [m for m in found["metrics"] if m["config"]["type"].endswith("DriftedColumnsCount")]
            return float(count["value"]["share"])

    def performance(self, frame: DataFrame, name: str) -> float:
        with clock.part("evidently"):
            from evidently import BinaryClassification, DataDefinition, metrics

            names = ("RocAuc", "F1Score", "Precision", "Recall", "Accuracy", "LogLoss")
            asked = [getattr(metrics, kind)(probas_threshold=0.5) for kind in names]
            roles = BinaryClassification(target="late", prediction_probas="probability")
            labelled = frame[["late", "probability"]].dropna().astype({"late": int})
            current = self._dataset(labelled, DataDefinition(classification=[roles]))
            found = self._save(asked, current, None, f"performance-{name}")
            [auc] = [m for m in found["metrics"] if m["config"]["type"].endswith("RocAuc")]
            return float(auc["value"])

    def _dataset(self, frame: DataFrame, definition: Any = None) -> Any:
        from evidently import DataDefinition, Dataset

        sample = frame.sample(SAMPLE, random_state=0) if len(frame) > SAMPLE else frame
        text = [name for name in sample.columns if sample[name].dtype == object]
        numbers = [name for name in sample.columns if name not in text]
        kinds = DataDefinition(numerical_columns=numbers, categorical_columns=text)
        return Dataset.from_pandas(sample, data_definition=definition or kinds)

    def _save(self, asked: list[Any], current: Any, reference: Any, name: str) -> dict[str, Any]:
        from evidently import Report

        snapshot = Report(asked, include_tests=True).run(current, reference)
        folder = STATE / "reports"
        folder.mkdir(exist_ok=True)
        snapshot.save_html(str(folder / f"{name}.html"))
        (folder / f"{name}.json").write_text(snapshot.json())
        return snapshot.dict()


@contextmanager
def served(bento: str, log: Path) -> Iterator[str]:
    """The address of `bento`, served by a child in a process group of its own until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", bento, "--host", "127.0.0.1", "--port", str(port)]
    server_log = log.with_suffix(".server")
    with server_log.open("wb") as output:
        child = subprocess.Popen(
            command,
            env={**os.environ, "RAW_PREDICTION_LOG": str(log)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while not _ready(url):
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not become ready:\n{server_log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield url
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return True
    except OSError:
        return False


def ask(url: str, rows: list[dict[str, Any]], ids: list[str]) -> list[float]:
    body = json.dumps({"rows": rows, "ids": ids}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
