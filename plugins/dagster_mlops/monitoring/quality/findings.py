"""The faults of one table, column by column and as a whole."""

from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import shorten, table
from dagster_mlops.core.terminal import line
from dagster_mlops.monitoring.normalise import Frame


@lazy_dataclass(frozen=True)
class Finding:
    """One column's shares of bad values, each 0..1, and the problems they are."""

    column: str
    kind: str
    missing: float = 0.0
    malformed: float = 0.0
    out_of_range: float = 0.0
    unknown: float = 0.0  # in none of the categories
    problems: tuple[str, ...] = ()


@lazy_dataclass(frozen=True)
class Quality:
    """Findings by column, worst first, and all problems in words; no problems means that the check passes."""

    frame: Frame
    findings: list[Finding]
    problems: list[str]
    duplicates: int

    @property
    def rows(self) -> int:
        return len(self.frame.data)

    def to_metadata(self, tool: str, most: int) -> dict[str, Any]:
        """Plain numbers and a table of at most `most` columns."""
        share = [f.missing for f in self.findings if f.column in self.frame.kinds]
        rows = [
            {
                "column": shorten(line(f.column), 80),
                "kind": f.kind,
                "missing": f.missing,
                "malformed": f.malformed,
                "out of range": f.out_of_range,
                "unknown": f.unknown,
                "verdict": shorten(line("; ".join(f.problems)), 500) or "good",
            }
            for f in self.findings[:most]
        ]
        return {
            f"{tool}/rows": self.rows,
            f"{tool}/problems": len(self.problems),
            f"{tool}/duplicates": self.duplicates,
            f"{tool}/missing_share": sum(share) / len(share) if share else 0.0,
            **table(f"{tool}/columns", rows),
        }
