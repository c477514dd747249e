"""Columns that are no longer what they were in the reference: gone, of another kind, collapsed, or of new values."""

import math
from typing import Any

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.monitoring.comparison.measure import Score
from dagster_mlops.monitoring.normalise import Frame

# Of two samples of one distribution, no more than one in ten thousand differs by as many standard errors.
_STANDARD_ERRORS = 4
_UNLIKELY = 1e-4
_LOST = "change of the share of missing values"
FEWEST = 20  # values that show what a column is
_IDENTIFIER = 0.9  # share of distinct values
_CONSTANT = 0.99  # share of one value
_EPOCH = 719163  # ordinal of 1970-01-01
_TAILS = (0.005, 0.995)  # quantiles of the reference: one wrong value in it does not widen its range


def structural_verdict(
    name: str, current: Frame, reference: Frame, *, required: bool, missing_change: float
) -> Score | None:
    """The verdict on a column that no tool is asked about, else None."""
    kind, earlier_kind = current.kinds.get(name), reference.kinds.get(name)
    if kind is None or earlier_kind is None:
        where = "the current data" if kind is None else "the reference"
        return Score(name, f"missing in {where}", drifted=required, compared=required, broken=required)
    if earlier_kind == "empty":
        return Score(name, "empty in the reference: not compared", drifted=False, compared=False)
    if kind == "empty":
        by_chance = float(reference.data[name].isna().mean()) ** len(current.data)
        if by_chance > _UNLIKELY:
            return Score(name, "empty in the current data: not compared", drifted=False, compared=False)
        return _broken(name, "empty in the current data")
    if kind != earlier_kind:
        return _broken(name, f"was {earlier_kind}, is {kind}")
    if loss := lost_values(name, current, reference, missing_change):
        return loss
    if kind == "date":
        return _dates(name, current.data[name].dropna(), reference.data[name].dropna())
    if kind == "category":
        return _identifiers(name, current.data[name].dropna(), reference.data[name].dropna())
    return None


def lost_values(name: str, current: Frame, reference: Frame, most: float) -> Score | None:
    """The verdict on a column whose share of values that are missing, infinite or of another kind has changed."""
    current_share, reference_share = (float(frame.data[name].isna().mean()) for frame in (current, reference))
    change = abs(current_share - reference_share)
    rows = [len(frame.data) for frame in (current, reference)]
    pooled = (current_share * rows[0] + reference_share * rows[1]) / sum(rows)
    by_chance = _STANDARD_ERRORS * math.sqrt(pooled * (1 - pooled) * sum(1 / count for count in rows))
    if change <= max(most, by_chance):
        return None
    verdict = f"{current_share:.0%} missing or malformed, {reference_share:.0%} in the reference"
    # Fewer than before is a change that a model may not know, and no fault.
    is_more = current_share > reference_share
    return Score(
        name, verdict, drifted=True, broken=is_more, score=change, threshold=max(most, by_chance), method=_LOST
    )


def new_values(name: str, current: Frame, reference: Frame, most: float) -> str:
    """The problem of a column that is one value now, or of values that the reference never had; else nothing."""
    values: Any = current.data[name].dropna()
    earlier: Any = reference.data[name].dropna()
    if len(values) >= FEWEST and len(earlier) >= FEWEST:
        shares = values.value_counts(normalize=True)
        value, share = shares.index[0], float(shares.iloc[0])
        if share >= _CONSTANT and float((earlier == value).mean()) < 0.5:
            text = f"{value:g}" if isinstance(value, float) else str(value)[:40]
            return f"{share:.0%} of the values are {text}"
    if reference.kinds[name] == "number":
        low, high = earlier.quantile(_TAILS[0]), earlier.quantile(_TAILS[1])
        outside = [float(((side < low) | (side > high)).mean()) for side in (values, earlier)]
        text = f"outside {low:g} to {high:g}, {outside[1]:.1%} in the reference"
    else:
        outside = [float((~values.isin(list(earlier.unique()))).mean()), _unseen(earlier)]
        text = "in categories that are not in the reference"
    by_chance = _STANDARD_ERRORS * math.sqrt(outside[1] * (1 - outside[1]) * (1 / len(values) + 1 / len(earlier)))
    return f"{outside[0]:.0%} of the values are {text}" if outside[0] > outside[1] + max(most, by_chance) else ""


def _unseen(values: Any) -> float:
    """The share of new values that a sample without change brings: that of the values seen once.

    I. J. Good, The population frequencies of species, Biometrika 40, 1953.
    """
    return float((values.value_counts() == 1).sum() / len(values))


def _broken(name: str, verdict: str) -> Score:
    return Score(name, verdict, drifted=True, broken=True)


def _identifiers(name: str, values: Any, earlier: Any) -> Score | None:
    if len(earlier) < FEWEST or (before := earlier.nunique() / len(earlier)) <= _IDENTIFIER:
        return None
    distinct = values.nunique()
    if len(values) >= FEWEST and distinct < before * len(values) / 2:
        return _broken(name, f"identifiers repeat: {distinct} distinct of {len(values)}, {before:.0%} in the reference")
    return Score(name, "identifier: not compared", drifted=False, compared=False)


def _dates(name: str, values: Any, earlier: Any) -> Score:
    """Dates move on by themselves. A jump by years, and ten times the reference's span, is a fault; so is a stop."""
    days, before = _days(values), _days(earlier)
    if days is None or before is None:
        return Score(name, "dates: not compared", drifted=False, compared=False)
    low, high = np.quantile(before, _TAILS)
    reach = max(10 * (high - low), 5 * 365.25)
    far = float(np.mean((days < low - reach) | (days > high + reach)))
    if far > 0.1:
        first, last = (_day(min(side)) for side in (days, before))
        return _broken(name, f"{far:.0%} of the dates are years from the reference: from {first} on, {last} before")
    instants, before_instants = (side.astype(str).value_counts(normalize=True) for side in (values, earlier))
    each_its_own = len(before_instants) > len(earlier) / 2
    if each_its_own and len(values) >= FEWEST and instants.iloc[0] >= _CONSTANT:
        return _broken(name, f"{instants.iloc[0]:.0%} of the dates are {instants.index[0]}")
    return Score(name, "dates: not compared", drifted=False, compared=False)


def _day(number: float) -> str:
    return str(np.datetime64(int(number), "D"))


def _days(values: Any) -> Any:
    """Dates as days since 1970; None for times of day, periods and others that are not points in time."""
    if not len(values):
        return None
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        naive = values.dt.tz_localize(None) if values.dt.tz is not None else values
        return naive.to_numpy().astype("datetime64[D]").astype(float)
    if isinstance(values.dtype, pd.PeriodDtype):
        return values.dt.start_time.to_numpy().astype("datetime64[D]").astype(float)
    days = [value.toordinal() - _EPOCH for value in values if hasattr(value, "toordinal")]
    return np.asarray(days, dtype=float) if len(days) * 2 > len(values) else None
