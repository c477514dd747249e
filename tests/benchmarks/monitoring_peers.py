"""The same consecutive windows, sound and with a broken column, judged by this library and by others at their defaults.

NannyML and alibi-detect run from folders of their own, which DAGSTER_MLOPS_NANNYML and DAGSTER_MLOPS_ALIBI name.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tests.benchmarks.measure import show
from tests.benchmarks.monitoring_data import Data, flights, stops
from tests.benchmarks.monitoring_quiet import SIZES
from tests.benchmarks.monitoring_sharp import BROKEN, COLUMNS, World, broken

REFERENCE = 8000
NANNYML = """
import nannyml
def verdicts(reference, windows):
    names = list(reference)
    calculator = nannyml.UnivariateDriftCalculator(column_names=names, chunk_size=len(windows[0])).fit(reference)
    for window in windows:
        table = calculator.calculate(window).filter(period="analysis").to_df()
        yield bool(table.xs("alert", axis=1, level=2).any().any())
"""
ALIBI = """
import numpy as np
from alibi_detect.cd import TabularDrift
def verdicts(reference, windows):
    texts = {i: None for i, name in enumerate(reference) if isinstance(reference[name].dtype, pd.CategoricalDtype)}
    def matrix(frame):
        columns = [frame[name].cat.codes if i in texts else frame[name].fillna(-999) for i, name in enumerate(frame)]
        return np.stack([column.to_numpy(float) for column in columns], axis=1)
    detector = TabularDrift(matrix(reference), p_val=0.05, categories_per_feature=texts)
    for window in windows:
        yield bool(detector.predict(matrix(window))["data"]["is_drift"])
"""
CHILD = """
import json, pickle, sys, warnings
import pandas as pd
warnings.simplefilter("ignore")
{body}
answers = []
for number in range(int(sys.argv[2])):
    parts = []
    for part in range(3):
        with open(f"{{sys.argv[1]}}/{{number}}-{{part}}.json") as file:
            frame = pd.DataFrame(json.load(file))
        parts.append(frame)
    for name in parts[0]:
        if parts[0][name].map(lambda value: isinstance(value, str)).any():
            words = sorted({{value for part in parts for value in part[name] if isinstance(value, str)}} | {{"-"}})
            for part in parts:
                part[name] = pd.Categorical(part[name].where(part[name].notna(), "-"), words)
        else:
            for part in parts:
                part[name] = part[name].astype(float)
    one = []
    for window in parts[1:]:
        try:
            one += list(verdicts(parts[0], [window]))
        except Exception as error:  # no verdict: someone will look
            print(type(error).__name__, str(error)[:100], file=sys.stderr)
            one.append(True)
    answers.append(one)
print(json.dumps(answers))
"""


class Case(NamedTuple):
    """A window of consecutive rows, the same with a broken column, and 8,000 other rows of its month."""

    reference: pd.DataFrame
    sound: pd.DataFrame
    broken: pd.DataFrame


def measure(data: Data, size: int, windows: int, slow: int) -> dict[str, Any]:
    """Share of windows that are an alarm, sound and broken, by contender.

    Args:
        windows: Number of windows …
        slow: … of which Evidently, NannyML and alibi-detect judge so many.
    """
    world = World(data, 0, size, windows)
    columns = [name for name in data.columns if pd.api.types.is_numeric_dtype(data.frame[name])]
    kinds, targets = (BROKEN, COLUMNS) if data.name == "flights" else (BROKEN[:4], columns)
    cases, ours = [], []
    for number, (rows, window, recent) in enumerate(world.cases):
        wrong = broken(rows, kinds[number % len(kinds)], targets[number % len(targets)])
        ours.append([world.alarms(part, window, recent) for part in (rows, wrong)])
        clock: Any = data.frame["time"]
        month = np.flatnonzero(
            ((clock.dt.month == clock[rows.index[0]].month) & ~clock.index.isin(rows.index)).to_numpy()
        )
        places = np.sort(world.rng.choice(month, min(REFERENCE, len(month)), replace=False))
        cases.append(Case(*(pd.DataFrame(frame[data.columns]) for frame in (data.frame.iloc[places], rows, wrong))))
    verdicts: dict[str, list[list[bool]]] = {
        "this": ours,
        "PSI 0.2, any column": _each(cases, _psi),
        "KS/χ² 0.05, any column": _each(cases, _ks),
        "Evidently's default": _each(cases[:slow], _evidently),
    }
    for name, variable, body in (
        ("NannyML's default", "DAGSTER_MLOPS_NANNYML", NANNYML),
        ("alibi-detect, 0.05", "DAGSTER_MLOPS_ALIBI", ALIBI),
    ):
        if folder := os.environ.get(variable):
            verdicts[name] = _elsewhere(cases[:slow], folder, body)
    shares = {name: np.mean(parts, axis=0).tolist() for name, parts in verdicts.items()}
    return {"data": data.name, "rows": size, "windows": windows, "slow": slow, "alarms": shares}


def _each(cases: list[Case], verdict: Callable[[pd.DataFrame, pd.DataFrame], bool]) -> list[list[bool]]:
    return [[verdict(case.reference, window) for window in (case.sound, case.broken)] for case in cases]


def _elsewhere(cases: list[Case], folder: str, body: str) -> list[list[bool]]:
    with tempfile.TemporaryDirectory(prefix="peers-") as work:
        for number, case in enumerate(cases):
            for part, frame in enumerate(case):
                columns = {name: [None if pd.isna(x) else x for x in frame[name].tolist()] for name in frame}
                Path(work, f"{number}-{part}.json").write_text(json.dumps(columns))
        environment = {**os.environ, "PYTHONPATH": folder, "NML_DISABLE_USAGE_LOGGING": "1"}
        command = [sys.executable, "-c", CHILD.format(body=body), work, str(len(cases))]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _column(frame: pd.DataFrame, name: str) -> Any:
    return frame[name]


def _counts(a: Any, b: Any) -> list[np.ndarray]:
    """Values by bin: categories, or ten quantiles of the reference."""
    if a.dtype == object:
        names = sorted({*a.dropna(), *b.dropna()})
        return [part.value_counts().reindex(names, fill_value=0).to_numpy() for part in (a, b)]
    edges = np.unique(np.quantile(a.dropna(), np.linspace(0, 1, 11)))[1:-1]
    return [np.bincount(np.searchsorted(edges, x.dropna()), minlength=len(edges) + 1) for x in (a, b)]


def _psi(reference: pd.DataFrame, window: pd.DataFrame) -> bool:
    for name in reference:
        p, q = (np.maximum(x / max(x.sum(), 1), 1e-4) for x in _counts(reference[name], window[name]))
        if ((q - p) * np.log(q / p)).sum() > 0.2:
            return True
    return False


def _ks(reference: pd.DataFrame, window: pd.DataFrame) -> bool:
    from scipy import stats

    for name in reference:
        a, b = _column(reference, name), _column(window, name)
        if a.dtype == object:
            counts = np.array(_counts(a, b)) + 1e-9
            result: Any = stats.chi2_contingency(counts) if counts.shape[1] > 1 else None
        else:
            result = stats.ks_2samp(a.dropna(), b.dropna()) if len(b.dropna()) else None
        if result is not None and result.pvalue < 0.05:
            return True
    return False


def _evidently(reference: pd.DataFrame, current: pd.DataFrame) -> bool:
    """Evidently's own verdict on the dataset: half of its columns drift."""
    from evidently import Report
    from evidently.presets import DataDriftPreset

    try:
        result = Report([DataDriftPreset()]).run(current, reference).dict()
    except ValueError:  # an empty column: no verdict, someone will look
        return True
    [count] = [
        m["value"] for m in result["metrics"] if m.get("metric_name", m.get("metric_id", "")).startswith("Drifted")
    ]
    return count["share"] >= 0.5


def run(windows: int = 42, slow: int = 12) -> dict[str, Any]:
    """Print the tables of contenders."""
    results = [
        measure(data, size, windows, slow) for data in filter(None, (flights(), stops())) for size in SIZES[data.name]
    ]
    names = list(results[0]["alarms"])
    show(
        "Share of alarms in sound windows / in the same ones with one broken column",
        ["windows", *names],
        [
            [f"{r['data']}, {r['rows']} rows", *(" / ".join(f"{x:.2f}" for x in r["alarms"][name]) for name in names)]
            for r in results
        ],
    )
    return {"peers": results}
