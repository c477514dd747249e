"""Which columns of the current data are distributed otherwise than in the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.evidently.normalise import Frame
from dagster_mlops.evidently.resource import EvidentlyResource, quiet

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

# PSI and Jensen-Shannon distance say how large a shift is. A p-value says how sure one can be that there is any, which
# at production volumes is always. How the thresholds were found: docs/evidently.md.
DEFAULT_PRESET: Mapping[str, Any] = {
    "num_method": "psi",
    "num_threshold": 0.2,
    "cat_method": "jensenshannon",
    "cat_threshold": 0.1,
}
_KEPT_CATEGORIES = 50


@dataclass(frozen=True)
class ColumnVerdict:
    """What became of one column. `score` and `threshold` mean what `method` says: a distance or a p-value."""

    column: str
    verdict: str
    drifted: bool
    compared: bool = True
    method: str = ""
    score: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Verdicts, worst first, and Evidently's snapshot of the columns it could compare."""

    columns: list[ColumnVerdict]
    snapshot: "Snapshot | None"

    @property
    def drifted(self) -> list[str]:
        return [c.column for c in self.columns if c.drifted]

    @property
    def compared(self) -> list[str]:
        return [c.column for c in self.columns if c.compared]

    @property
    def share(self) -> float:
        """Drifted columns of those compared."""
        return len(self.drifted) / len(self.compared) if self.compared else 0.0


def compare(
    current: Frame,
    reference: Frame,
    evidently: EvidentlyResource,
    *,
    columns: Sequence[str] | None = None,
    preset: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
) -> Comparison:
    """Compare column by column with Evidently's drift methods.

    A column that changed its kind, or went missing or empty in the current data, is drifted without asking Evidently,
    which would crash on it. A column that only one side has counts when `columns` names it. Dates, columns empty in the
    reference, and identifiers (nearly every value its own) are not compared.
    """
    both = dict.fromkeys([*reference.kinds, *current.kinds])
    names = list(both if columns is None else columns)
    verdicts = [_structure(name, current, reference, named=columns is not None) for name in names]
    asked = [name for name, verdict in zip(names, verdicts, strict=True) if verdict is None]
    judged, snapshot = _judge(asked, current, reference, evidently, {**DEFAULT_PRESET, **(preset or {})}, tags)
    found = [*judged, *(verdict for verdict in verdicts if verdict is not None)]
    return Comparison(sorted(found, key=_worst_first), snapshot)


def _worst_first(column: ColumnVerdict) -> tuple[bool, bool, float]:
    """Drifted before stable, then by how far the score is beyond its threshold (whichever way the method counts)."""
    if column.score is None or not column.threshold:
        return not column.drifted, not column.compared, -1.0
    ratio = column.score / column.threshold
    return not column.drifted, not column.compared, ratio if "p_value" in column.method else -ratio


def _structure(name: str, current: Frame, reference: Frame, *, named: bool) -> ColumnVerdict | None:
    """The verdict on a column that Evidently cannot be asked about, else None."""
    now, before = current.kinds.get(name), reference.kinds.get(name)
    if now is None or before is None:
        where = "both" if now is before else "the current data" if now is None else "the reference"
        return ColumnVerdict(name, f"missing in {where}", drifted=named, compared=named)
    if before == "empty":
        return ColumnVerdict(name, "empty in the reference: not compared", drifted=False, compared=False)
    if now == "empty":
        return ColumnVerdict(name, "empty in the current data", drifted=True)
    if now != before:
        return ColumnVerdict(name, f"was {before}, is {now}", drifted=True)
    if now == "date":
        return ColumnVerdict(name, "dates: not compared", drifted=False, compared=False)
    values = reference.data[name].dropna()
    if now == "category" and len(values) >= 20 and values.nunique() > 0.9 * len(values):
        return ColumnVerdict(name, "identifier: not compared", drifted=False, compared=False)
    return None


def _judge(
    names: list[str],
    current: Frame,
    reference: Frame,
    evidently: EvidentlyResource,
    preset: Mapping[str, Any],
    tags: Sequence[str],
) -> tuple[list[ColumnVerdict], "Snapshot | None"]:
    if not names:
        return [], None
    with quiet():
        drift = extra("evidently.presets").DataDriftPreset(columns=names, **_for_columns(preset, names))
    now, before = _fold_rare(names, current, reference)
    try:
        snapshot = evidently.run([drift], evidently.dataset(now, names), evidently.dataset(before, names), tags=tags)
        facts = snapshot.dict()
    except Exception as error:
        if len(names) == 1:
            return [ColumnVerdict(names[0], f"cannot be compared: {error}"[:200], drifted=True)], None
        # One column spoils the report: find it, and report on the others.
        single = {name: _judge([name], current, reference, evidently, preset, tags) for name in names}
        good = [name for name, (_, snapshot) in single.items() if snapshot is not None]
        bad = [verdict for verdicts, snapshot in single.values() if snapshot is None for verdict in verdicts]
        if len(good) == len(names):  # each alone works, so the cause is no column
            raise
        judged, snapshot = _judge(good, current, reference, evidently, preset, tags)
        return [*judged, *bad], snapshot
    scores = {m["config"]["column"]: m for m in facts["metrics"] if "column" in m["config"]}
    # Only the status decides: a score may be a distance (high is drift) or a p-value (low is drift).
    status = {
        t["metric_config"]["params"]["column"]: t["status"].value
        for t in facts["tests"]
        if "column" in t["metric_config"]["params"]
    }
    verdicts = []
    for name in names:
        config, drifted = scores[name]["config"], status[name] == "FAIL"
        score, threshold = float(scores[name]["value"]), config.get("threshold")
        verdicts.append(
            ColumnVerdict(
                name,
                "drifted" if drifted else "stable",
                drifted=drifted,
                method=str(config.get("method", "")),
                score=score if score == score else None,
                threshold=None if threshold is None else float(threshold),
            )
        )
    return verdicts, snapshot


def _for_columns(preset: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Evidently refuses per-column options of columns that are not in the report."""
    return {
        option: {name: v for name, v in value.items() if name in names} if option.startswith("per_column") else value
        for option, value in preset.items()
    }


def _fold_rare(names: list[str], current: Frame, reference: Frame) -> tuple[Frame, Frame]:
    """Beyond the reference's 50 commonest, categories are one: distances between long tails are mostly noise."""
    now: Any = current.data[names].copy()
    before: Any = reference.data[names].copy()
    for name in names:
        if reference.kinds[name] == "category" and before[name].nunique() > _KEPT_CATEGORIES:
            kept = before[name].value_counts().index[:_KEPT_CATEGORIES]
            for side in (now, before):
                side[name] = side[name].where(side[name].isin(kept) | side[name].isna(), "(other)")
    return Frame(now, current.kinds), Frame(before, reference.kinds)
