"""A rehearsal of faults: how much worse predictions get when a column is broken, known before any label is there."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.core.extras import extra
from dagster_mlops.monitoring.performance.metrics import builtin

Kind = Literal["missing", "far below", "far above", "other"]
Predict = Callable[[Any], Any]
"""A model: a pandas frame of its inputs to the probability of 1 of each row."""
KINDS: Mapping[str, Kind] = {
    "missing": "missing", "malformed": "missing", "unseen": "missing",
    "far below": "far below", "far above": "far above",
}  # fmt: skip
_LEARN, _TEST = 20_000, 8_000  # rows


class Drop(NamedTuple):
    """The largest relative drop of a metric in the rehearsal, and the metric."""

    drop: float
    metric: str


def rehearse(
    frame: "pd.DataFrame",
    columns: list[str],
    label: str,
    prediction: str,
    metrics: tuple[str, ...],
    predict: Predict | None = None,
) -> dict[str, dict[str, Drop]]:
    """The drop of the predictions' quality when one column is missing, far out of range, or otherwise wrong.

    It is measured where labels are, with the column broken in all rows of the second half of the history. ``other`` is
    the worst of: values of other rows (permutation importance: L. Breiman, Random Forests, Machine Learning 45, 2001),
    one sd more or less, the least value for all, and the greatest.

    Args:
        frame: Rows with labels, 0 and 1, predictions and inputs, in order of time.
        columns: The inputs.
        predict: The model, as a function of a frame of the inputs. Without it, a boosted one that has learnt its
            predictions stands in (distillation: G. Hinton and others, arXiv 1503.02531).
    """
    random, half = np.random.default_rng(0), len(frame) // 2
    test = half + np.sort(random.choice(len(frame) - half, min(len(frame) - half, _TEST), replace=False))
    inputs = frame[columns] if predict else pd.DataFrame({name: _numbers(frame[name]) for name in columns})
    ask: Predict | None = predict
    if ask is None:
        learn = np.sort(random.choice(half, min(half, _LEARN), replace=False))
        stand_in: Any = extra("sklearn.ensemble").HistGradientBoostingRegressor(max_iter=150, random_state=0)
        stand_in.fit(inputs.iloc[learn].to_numpy(), frame[prediction].to_numpy(float)[learn])
        ask = _of_arrays(stand_in.predict)
    labels, sample = frame[label].to_numpy(float)[test], inputs.iloc[test]

    def quality(rows: Any) -> dict[str, float]:
        scores = np.clip(np.asarray(ask(rows), float), 1e-4, 1 - 1e-4)
        return {name: builtin(name, 0.5)(labels, scores) for name in metrics}

    usual = quality(sample)

    def drop(name: str, values: Any) -> Drop:
        broken = quality(sample.assign(**{name: values}))
        return max(Drop(relative_drop(metric, broken[metric], usual[metric]), metric) for metric in metrics)

    drops: dict[str, dict[str, Drop]] = {}
    for name in columns:
        column = sample[name].to_numpy()
        wrong_values: list[Any] = [random.permutation(column)]
        far: dict[str, Any] = {}
        if pd.api.types.is_numeric_dtype(sample[name].dtype) and not pd.api.types.is_bool_dtype(sample[name].dtype):
            column = column.astype(float)
            low, high, sd = (float(getattr(inputs[name], what)()) for what in ("min", "max", "std"))
            wrong_values += [column + sd, column - sd, np.full(len(column), low), np.full(len(column), high)]
            span = max(high - low, 1.0)
            far = {"far below": column - 1000 * span, "far above": column + 1000 * span}
        missing = drop(name, None if sample[name].dtype == object else np.nan)
        drops[name] = {
            "missing": missing,
            **{kind: drop(name, far[kind]) if far else missing for kind in ("far below", "far above")},
            "other": max(drop(name, values) for values in wrong_values),
        }
    return drops


def _of_arrays(predict: Predict) -> Predict:
    return lambda rows: predict(rows.to_numpy())


def relative_drop(metric: str, value: float, usual: float) -> float:
    """The loss of a metric, as a share of its usual value; below 0 where it is better."""
    return (usual - value) / abs(usual) * (1 if metric == "roc_auc" else -1)


def _numbers(column: Any) -> "np.ndarray":
    """A column as numbers: categories by their codes, times by their value; missing as NaN."""
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(float, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column.astype("int64").to_numpy(float)
    codes = pd.factorize(column.astype(str).where(column.notna()), sort=True)[0].astype(float)
    return np.where(codes < 0, np.nan, codes)
