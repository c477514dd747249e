"""A table held against rules and against what a reference let expect; every row counts, as it came."""

import datetime
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dagster_mlops.core.arrays import pd
from dagster_mlops.monitoring.normalise import Frame, normalise, to_pandas
from dagster_mlops.monitoring.quality.expectations import Expectations, disorder, too_many
from dagster_mlops.monitoring.quality.findings import Finding, Quality
from dagster_mlops.monitoring.quality.rules import Rules

_TRUTH = frozenset(["True", "False"])


def examine(data: Any, rules: Rules | None = None, expected: Expectations | None = None) -> Quality:
    """Count what is missing, malformed, out of range, unknown, out of order, repeated or old.

    Raises:
        MonitoringError: `data` is not a table.
    """
    rules, expected = rules or Rules(), expected or Expectations()
    raw = to_pandas(data)
    names = rules.configured
    frame = normalise(raw, names if rules.columns is not None else None)
    from_reference = [name for name in expected.kinds if rules.columns is None or name in rules.columns]
    findings = [
        _Column(name, frame, rules, expected).finding()
        if name in frame.kinds
        else Finding(name, "missing", problems=(f"column '{name}' is not there",))
        for name in dict.fromkeys([*names, *from_reference, *frame.kinds])
    ]
    keyed = [name for name in rules.no_duplicates_of if name in frame.kinds]
    repeats = _repeats(raw.loc[:, keyed]) if keyed else 0
    problems = [
        *_rows(len(raw), rules),
        *(problem for finding in findings for problem in finding.problems),
        *_names(raw, rules),
        *_orders(frame, rules, expected),
        *([f"{repeats} rows repeat ({', '.join(keyed)})"] if repeats else []),
        *_age(raw, rules),
    ]
    worst = sorted(findings, key=lambda f: (-len(f.problems), -f.out_of_range, -f.unknown, -f.malformed, -f.missing))
    return Quality(frame, worst, problems, repeats)


class _Column:
    """One column, its shares and its problems."""

    def __init__(self, name: str, frame: Frame, rules: Rules, expected: Expectations) -> None:
        self.name, self.rules, self.expected = name, rules, expected
        self.kind, self.values = frame.kinds[name], frame.data[name]
        self.rows, self.bad = max(len(self.values), 1), frame.malformed.get(name, 0)
        # Malformed numbers were set to missing; malformed text is still there.
        gaps = int(self.values.isna().sum())
        self.missing = gaps - (self.bad if self.kind in ("number", "empty") else 0)
        self.problems: list[str] = []

    def finding(self) -> Finding:
        rules, name = self.rules, self.name
        self._kind()
        self._missing()
        if self.bad / self.rows > rules.max_malformed_share:
            self.problems.append(f"'{name}' has {self.bad} malformed values")
        shares = [count / self.rows for count in (self.missing, self.bad, self._outside(), self._unknown())]
        return Finding(name, self.kind, *shares, problems=tuple(self.problems))

    def _kind(self) -> None:
        kind_by_rule = self.rules.types.get(self.name)
        if kind_by_rule and self.kind not in (kind_by_rule, "empty"):
            self.problems.append(f"'{self.name}' is {self.kind}, not {kind_by_rule}")
        earlier = self.expected.kinds.get(self.name)
        if earlier in (None, "empty", self.kind) or self.kind == "empty" or kind_by_rule or self._is_truth():
            return
        self.problems.append(f"'{self.name}' was {earlier}, is {self.kind}")

    def _is_truth(self) -> bool:
        """True/false here and 1/0 in the reference, or the other way round."""
        if self.kind == "category" and self.expected.ranges.get(self.name, (-1.0, 2.0)) == (0.0, 1.0):
            return bool(self.values.dropna().isin(list(_TRUTH)).all())
        categories = self.expected.categories.get(self.name)
        return self.kind == "number" and categories is not None and categories <= _TRUTH and self._is_binary()

    def _is_binary(self) -> bool:
        return bool(self.values.dropna().isin([0.0, 1.0]).all())

    def _missing(self) -> None:
        share, limits = self.missing / self.rows, self.rules.max_missing_share
        allowed = limits.get(self.name, 1.0) if isinstance(limits, Mapping) else limits
        if share > allowed:
            self.problems.append(f"'{self.name}' misses {share:.1%} of its values (allowed {allowed:.1%})")
            return
        is_limited = isinstance(limits, Mapping) and self.name in limits
        earlier = None if is_limited else self.expected.missing.get(self.name)
        if earlier is not None and self._too_many(share, earlier):
            self.problems.append(f"'{self.name}' misses {share:.1%} of its values, {earlier:.1%} in the reference")

    def _outside(self) -> int:
        span, learnt = self.rules.ranges.get(self.name), self.expected.ranges.get(self.name)
        if self.kind != "number":
            if span and self.kind != "empty":
                self.problems.append(f"'{self.name}' holds no numbers ({self.kind})")
            return 0
        low, high = span or learnt or (float("-inf"), float("inf"))
        outside = int(((self.values < low) | (self.values > high)).sum())
        text = f"'{self.name}' has {outside} values outside {low:g} to {high:g}"
        if span and outside:
            self.problems.append(text)
        elif not span and self._too_many(outside / self.rows, 0.0):
            self.problems.append(f"{text}, the range of the reference")
        return outside

    def _unknown(self) -> int:
        allowed, learnt = self.rules.categories.get(self.name), self.expected.categories.get(self.name)
        present: Any = self.values.dropna()
        if allowed is not None and self.kind == "number":
            unknown = present[~present.isin([_number(value) for value in allowed])]
        elif allowed is not None:
            unknown = present[~present.map(str).isin([str(value) for value in allowed])]
        elif learnt is not None and self.kind == "category":
            unknown = present[~present.isin(list(learnt))]
        else:
            return 0
        count = len(unknown)
        few = ", ".join(repr(str(value)[:40]) for value in list(pd.unique(unknown))[:3])
        if allowed is not None and count:
            self.problems.append(f"'{self.name}' has {count} values of none of its categories: {few}")
        elif allowed is None and self._too_many(count / self.rows, self.expected.unseen[self.name]):
            self.problems.append(f"'{self.name}' has {count} values in categories new to the reference: {few}")
        return count

    def _too_many(self, share: float, expected: float) -> bool:
        return too_many(share, self.rows, expected, self.rules.tolerance, self.expected.rows)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _rows(rows: int, rules: Rules) -> list[str]:
    if rows < rules.min_rows:
        return [f"{rows} rows, at least {rules.min_rows} expected"]
    if rules.max_rows is not None and rows > rules.max_rows:
        return [f"{rows} rows, at most {rules.max_rows} expected"]
    return []


def _names(raw: "pd.DataFrame", rules: Rules) -> list[str]:
    counts = Counter(str(label) for label in raw.columns)
    checked = counts if rules.columns is None else rules.columns
    return [f"{counts[name]} columns are called '{name}'" for name in checked if counts[name] > 1]


def _orders(frame: Frame, rules: Rules, expected: Expectations) -> list[str]:
    fixed = list(rules.at_least.items())
    problems = []
    for (greater, less), (share, rows) in disorder(frame, list(dict.fromkeys([*fixed, *expected.orders]))).items():
        is_fixed = (greater, less) in fixed
        if share > 0 if is_fixed else too_many(share, rows, 0.0, rules.tolerance, expected.rows):
            never = "" if is_fixed else ", never in the reference"
            problems.append(f"'{greater}' is below '{less}' in {share:.1%} of {rows} rows{never}")
    return problems


def _repeats(keys: "pd.DataFrame") -> int:
    """Rows that repeat an earlier one, by the values as they came: as a float64, two large numbers may be one."""
    try:
        return int(keys.duplicated().sum())
    except (TypeError, NotImplementedError):  # lists and the like, which cannot be hashed
        return int(keys.map(repr).duplicated().sum())


def _age(raw: "pd.DataFrame", rules: Rules) -> list[str]:
    """Times later than an hour from now are faults, and do not make the newest value young."""
    if rules.time is None or rules.max_age is None or rules.time not in map(str, raw.columns) or raw.empty:
        return []
    column = raw.iloc[:, [str(label) for label in raw.columns].index(rules.time)]
    # Numbers would be read as nanoseconds since 1970.
    as_times: Any = None if pd.api.types.is_numeric_dtype(column.dtype) else column.astype(str)
    times: Any = pd.to_datetime(as_times, utc=True, errors="coerce", format="mixed") if as_times is not None else None
    if times is None or not times.notna().any():
        return [f"'{rules.time}' holds no times"]
    present = pd.Timestamp(datetime.datetime.now(datetime.UTC))
    future = int((times > present + pd.Timedelta(hours=1)).sum())
    problems = [f"'{rules.time}' has {future} times in the future"] if future else []
    past = times[times <= present + pd.Timedelta(hours=1)]
    if past.empty or present - past.max() > rules.max_age:
        newest = "in the future only" if past.empty else f"{past.max():%Y-%m-%d %H:%M} UTC"
        problems.append(f"the newest '{rules.time}' is {newest}, older than {rules.max_age}")
    return problems
