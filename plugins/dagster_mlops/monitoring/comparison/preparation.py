"""Two frames brought into a form in which a distance between them means something."""

from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.monitoring.normalise import Frame, Kind

_KEPT_CATEGORIES = 50
_LARGEST = 1e100  # squares and sums of larger numbers overflow
_TRUTH = {"True": 1.0, "False": 0.0}


def aligned(current: Frame, reference: Frame) -> tuple[Frame, Frame]:
    """True and false on one side, 1 and 0 on the other: one meaning, so both become words."""
    sides = {}
    for name, kind in current.kinds.items():
        kinds = {kind, reference.kinds.get(name)}
        if kinds == {"number", "category"} and all(map(_is_truth, (current.data[name], reference.data[name]))):
            sides[name] = [side.data[name].map(_word) for side in (current, reference)]
    if not sides:
        return current, reference
    as_words: dict[str, Kind] = {name: "category" for name in sides}
    return (
        Frame(current.data.assign(**{n: s[0] for n, s in sides.items()}), {**current.kinds, **as_words}),
        Frame(reference.data.assign(**{n: s[1] for n, s in sides.items()}), {**reference.kinds, **as_words}),
    )


def comparable_values(names: list[str], reference: Frame, current: Frame) -> tuple[Frame, Frame]:
    """The columns `names` of both sides: outliers within reach, rare categories as one, long ones cut."""
    kinds: dict[str, Kind] = {name: reference.kinds[name] for name in names}
    left: Any = reference.data.copy(deep=False)
    right: Any = current.data.copy(deep=False)
    for name, kind in kinds.items():
        prepare = _within_reach if kind == "number" else _common
        left[name], right[name] = prepare(left[name], right[name])
    return Frame(left, kinds), Frame(right, kinds)


def _is_truth(values: Any) -> bool:
    return bool(values.dropna().isin([*_TRUTH, *_TRUTH.values()]).all())


def _word(value: Any) -> Any:
    return {1.0: "True", 0.0: "False"}.get(value, value) if value == value else None


def _within_reach(reference: Any, current: Any) -> tuple[Any, Any]:
    """Numbers no farther from the middle 98 % of the reference than it is wide.

    Distances count values by bins of equal width: one value of 1e9 leaves all others in a single bin.
    """
    largest = max(float(side.abs().max()) for side in (reference, current))
    if largest > _LARGEST:  # only ratios matter to a distance
        power = -int(np.frexp(largest)[1])
        reference, current = (np.ldexp(side, power) for side in (reference, current))
    low, high = reference.quantile([0.01, 0.99])
    reach = high - low
    if reach > 0:
        reference, current = (side.clip(low - reach, high + reach) for side in (reference, current))
    return reference, current


def _common(reference: Any, current: Any) -> tuple[Any, Any]:
    """Beyond the reference's 50 commonest, categories are one: distances between long tails are mostly noise."""
    if reference.nunique() > _KEPT_CATEGORIES:
        common = reference.value_counts().index[:_KEPT_CATEGORIES]
        reference, current = (side.where(side.isin(common) | side.isna(), "(other)") for side in (reference, current))
    return reference, current
