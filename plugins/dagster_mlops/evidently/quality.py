"""The faults of one dataframe by itself: missing, malformed, out of range and repeated values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import table
from dagster_mlops.evidently.resource import EvidentlyResource, Snapshot, quiet
from dagster_mlops.evidently.upstream import one_histogram_per_column
from dagster_mlops.monitoring.normalise import Frame, normalise, to_pandas

ROWS = "evidently/rows"
"""Metadata key of the number of rows."""

# A column of more distinct words is one of identifiers. Evidently counts and stores each label of a category by itself:
# that took half the time of a check on 30,000 flights, and no one reads them.
MOST_LABELS = 1_000


@dataclass(frozen=True)
class Finding:
    """One column's shares of bad values, each 0..1, and the problems they are."""

    column: str
    kind: str
    missing: float = 0.0
    malformed: float = 0.0
    out_of_range: float = 0.0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quality:
    """Findings by column, worst first, and all problems in words; no problems means that the check passes."""

    frame: Frame
    findings: list[Finding]
    problems: list[str]
    duplicates: int

    @property
    def rows(self) -> int:
        return len(self.frame.data)

    def to_metadata(self, most: int) -> dict[str, Any]:
        """Plain numbers and a table of at most `most` columns."""
        share = [f.missing for f in self.findings if f.column in self.frame.kinds]
        rows = [
            {
                "column": f.column,
                "kind": f.kind,
                "missing": f.missing,
                "malformed": f.malformed,
                "out of range": f.out_of_range,
                "verdict": "; ".join(f.problems) or "good",
            }
            for f in self.findings[:most]
        ]
        return {
            ROWS: self.rows,
            "evidently/problems": len(self.problems),
            "evidently/duplicates": self.duplicates,
            "evidently/missing_share": sum(share) / len(share) if share else 0.0,
            **table("evidently/columns", rows),
        }

    def summary(self, evidently: EvidentlyResource, sample: Frame, *, tags: Sequence[str]) -> Snapshot | None:
        """Evidently's summary of the columns it can digest; None where there are none, or no rows.

        Identifiers are summed up as text: how many, how many missing.
        """
        numbers = [name for name, kind in sample.kinds.items() if kind == "number"]
        words = [name for name, kind in sample.kinds.items() if kind == "category"]
        if sample.data.empty or not [*numbers, *words]:
            return None
        labels = [name for name in words if sample.data[name].nunique() <= MOST_LABELS]
        with quiet():
            preset = extra("evidently.presets").DataSummaryPreset(columns=[*numbers, *words])
        typed = {"categorical_columns": labels, "text_columns": [name for name in words if name not in labels]}
        dataset = evidently.dataset(sample, [*numbers, *words], **typed)
        with one_histogram_per_column():
            return evidently.run([preset], dataset, tags=tags)


def examine(
    data: Any,
    *,
    columns: Sequence[str] | None = None,
    max_missing_share: float | Mapping[str, float] = 1.0,
    max_malformed_share: float = 0.0,
    min_rows: int = 1,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    no_duplicates_of: Sequence[str] = (),
) -> Quality:
    """Count what is missing, malformed, out of range or repeated.

    Raises:
        MonitoringError: `data` is not a dataframe.
    """
    ranges = ranges or {}
    by_column = max_missing_share if isinstance(max_missing_share, Mapping) else {}
    configured = list(dict.fromkeys([*(columns or ()), *by_column, *ranges, *no_duplicates_of]))
    frame = normalise(data, configured if columns is not None else None)
    findings = []
    for name in dict.fromkeys([*configured, *frame.kinds]):
        if name not in frame.kinds:
            findings.append(Finding(name, "missing", problems=(f"column '{name}' is not there",)))
            continue
        allowed = by_column.get(name, 1.0) if by_column else max_missing_share
        assert isinstance(allowed, float | int)
        findings.append(_examine_column(name, frame, float(allowed), max_malformed_share, ranges.get(name)))
    keyed = [name for name in no_duplicates_of if name in frame.kinds]
    duplicates = _repeated(to_pandas(data).loc[:, keyed]) if keyed else 0
    problems = [problem for finding in findings for problem in finding.problems]
    if len(frame.data) < min_rows:
        problems.insert(0, f"{len(frame.data)} rows, at least {min_rows} expected")
    if duplicates:
        problems.append(f"{duplicates} rows repeat ({', '.join(keyed)})")
    worst = sorted(findings, key=lambda f: (-len(f.problems), -f.out_of_range, -f.malformed, -f.missing))
    return Quality(frame, worst, problems, duplicates)


def _repeated(keys: "pd.DataFrame") -> int:
    """Rows that repeat an earlier one, by the values as they came: as a float64, two large numbers may be one."""
    try:
        return int(keys.duplicated().sum())
    except TypeError:  # lists and the like, which cannot be hashed
        return int(keys.map(repr).duplicated().sum())


def _examine_column(
    name: str, frame: Frame, max_missing: float, max_malformed: float, span: tuple[float, float] | None
) -> Finding:
    values: Any = frame.data[name]
    rows, bad = max(len(values), 1), frame.malformed.get(name, 0)
    # Malformed numbers were set to missing; malformed text is still there.
    missing = int(values.isna().sum()) - (bad if frame.kinds[name] in ("number", "empty") else 0)
    outside, problems = 0, []
    if span and frame.kinds[name] == "number":
        outside = int(((values < span[0]) | (values > span[1])).sum())
    elif span and frame.kinds[name] != "empty":
        problems.append(f"'{name}' holds no numbers ({frame.kinds[name]})")
    if missing / rows > max_missing:
        problems.append(f"'{name}' misses {missing / rows:.1%} of its values (allowed {max_missing:.1%})")
    if bad / rows > max_malformed:
        problems.append(f"'{name}' has {bad} malformed values")
    if outside and span:
        problems.append(f"'{name}' has {outside} values outside {span[0]:g} to {span[1]:g}")
    return Finding(name, frame.kinds[name], missing / rows, bad / rows, outside / rows, tuple(problems))
