"""Drift of columns by Evidently's methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.evidently.quiet import quiet
from dagster_mlops.monitoring import Comparison, Score
from dagster_mlops.monitoring.normalise import Frame

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

    from dagster_mlops.evidently.resource import EvidentlyResource

# PSI and Jensen-Shannon distance say how large a shift is. A p-value says how sure one can be that there is any, which
# at production volumes is always. How the thresholds were found: docs/evidently.md.
DEFAULT_PRESET: Mapping[str, Any] = {
    "num_method": "psi",
    "num_threshold": 0.2,
    "cat_method": "jensenshannon",
    "cat_threshold": 0.1,
}


@dataclass(frozen=True)
class SnapshotReport:
    """An Evidently snapshot as a report in the resource's folder."""

    evidently: "EvidentlyResource"
    snapshot: "Snapshot"

    def path(self, *, folder: str, name: str) -> Path:
        """See :class:`dagster_mlops.monitoring.ToolReport`."""
        return self.evidently.report_path(folder=folder, name=name)

    def save(self, *, folder: str, name: str, record: Mapping[str, Any]) -> Path:
        """See :class:`dagster_mlops.monitoring.ToolReport`."""
        return self.evidently.save(self.snapshot, folder=folder, name=name, record=record)


def scores(
    reference: Frame, current: Frame, evidently: "EvidentlyResource", preset: Mapping[str, Any], name: str
) -> Comparison:
    """The verdicts of Evidently's ``DataDriftPreset``, and its report on the columns that it could compare."""
    columns, options = list(reference.kinds), {**DEFAULT_PRESET, **preset}
    with quiet():
        drift = extra("evidently.presets").DataDriftPreset(columns=columns, **_for_columns(options, columns))
    try:
        datasets = evidently.dataset(current, columns), evidently.dataset(reference, columns)
        snapshot = evidently.run([drift], *datasets, tags=[name])
        facts = snapshot.dict()
    except Exception as error:
        if len(columns) == 1:
            return Comparison([Score(columns[0], f"cannot be compared: {error}"[:200], drifted=True)])
        # One column spoils the report: find it, and report on the others.
        single = {c: scores(_only(reference, [c]), _only(current, [c]), evidently, preset, name) for c in columns}
        good = [column for column, answer in single.items() if answer.report]
        bad = [score for answer in single.values() if not answer.report for score in answer.columns]
        if len(good) == len(columns):  # each alone works, so no column is the cause
            raise
        if not good:
            return Comparison(bad)
        rest = scores(_only(reference, good), _only(current, good), evidently, preset, name)
        return Comparison([*rest.columns, *bad], rest.report)
    results = {m["config"]["column"]: m for m in facts["metrics"] if "column" in m["config"]}
    # Only the status decides: a score may be a distance (high is drift) or a p-value (low is drift).
    status = {
        t["metric_config"]["params"]["column"]: t["status"].value
        for t in facts["tests"]
        if "column" in t["metric_config"]["params"]
    }
    verdicts = []
    for column in columns:
        config, drifted = results[column]["config"], status[column] == "FAIL"
        score, threshold = float(results[column]["value"]), config.get("threshold")
        verdicts.append(
            Score(
                column,
                "drifted" if drifted else "stable",
                drifted=drifted,
                method=str(config.get("method", "")),
                score=score if score == score else None,
                threshold=None if threshold is None else float(threshold),
            )
        )
    return Comparison(verdicts, SnapshotReport(evidently, snapshot))


def _only(frame: Frame, columns: list[str]) -> Frame:
    data: Any = frame.data[columns]
    return Frame(data, {column: frame.kinds[column] for column in columns})


def _for_columns(preset: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    """Evidently refuses per-column options of columns that are not in the report."""
    return {
        option: {c: v for c, v in value.items() if c in columns} if option.startswith("per_column") else value
        for option, value in preset.items()
    }
