"""Relations between columns of numbers, learnt from a reference: what each is, given the others."""

from collections.abc import Mapping
from itertools import combinations_with_replacement

from dagster_mlops.core.arrays import np
from dagster_mlops.monitoring.windows.learning import number_column
from dagster_mlops.monitoring.windows.numbers import GRID, SPECIAL, NumberColumn, RelationColumn

_ROWS = 20_000
_INPUTS = 3
_MOST = 20
_LEAST = 0.5  # share of the variance that the others must explain
_CURVED = 0.8  # share of the linear relation's error that a curved one may have
_CANDIDATES = 12
_TAIL = 0.002  # share of rows on either side that is unusual: bins that the reference fills, too


def learn_relations(
    columns: Mapping[str, NumberColumn], cells: Mapping[str, "np.ndarray"], bins: int
) -> list[RelationColumn]:
    """The columns of which up to three others explain half of the variance, by least squares; at most 20 of them.

    Weights are for the others, and for their products and squares where these help: the dew point follows a curve.

    A relation counts where it holds on rows that it was not learnt from: it is learnt on the first half of the rows
    and tried on the second, and the other way round.

    Args:
        columns: Columns of numbers, by name.
        cells: The cells of the reference's rows.
        bins: Quantile bins.
    """
    names = list(columns)
    if len(names) < 2:
        return []
    rows = len(cells[names[0]])
    step = max(1, rows // _ROWS)
    table = np.stack([cells[name][::step] for name in names], axis=1)
    on_grid = ((table >= SPECIAL) & (table < SPECIAL + GRID)).all(axis=1)
    positions = table[on_grid].astype(float) - (SPECIAL + GRID // 2)
    if len(positions) < 500:
        return []
    x = positions - positions.mean(axis=0)
    scale = x.std(axis=0)
    usable = np.flatnonzero(scale > 2)
    correlation = np.eye(len(names))
    z = x[:, usable] / scale[usable]
    correlation[np.ix_(usable, usable)] = z.T @ z / len(z)
    relations = []
    for target in usable.tolist():
        strength = np.abs(correlation[target])
        strength[target] = 0
        candidates = [int(i) for i in np.argsort(-strength)[:_CANDIDATES] if strength[i] > 0.1]
        inputs = _best_inputs(correlation, target, candidates)
        if not inputs or not _holds(x[:, [target, *inputs]]):
            continue
        relations.append((_explained(correlation, target, inputs), target, inputs))
    result = []
    for _, target, inputs in sorted(relations, reverse=True)[:_MOST]:
        intercept, *fit = _fit(positions[:, [target, *inputs]]).tolist()
        by_name = {names[i]: weight for i, weight in zip(inputs, fit, strict=False)}
        pairs = combinations_with_replacement((names[i] for i in inputs), 2)
        products = tuple((*pair, weight) for pair, weight in zip(pairs, fit[len(inputs) :], strict=False))
        name = f"{names[target]} given {', '.join(by_name)}"
        blank = NumberColumn(name, 0.0, 1.0, ())
        draft = RelationColumn(name, names[target], by_name, intercept, blank, products)
        rest = draft.difference(columns, {key: values[::step] for key, values in cells.items()})
        # Positions are whole cells, so that the difference is not known better than that.
        fine = columns[names[target]].unit
        bins_of_rest = number_column(name, rest[np.isfinite(rest)], bins, least_spread=fine, tail=_TAIL)
        result.append(RelationColumn(name, names[target], by_name, intercept, bins_of_rest, products))
    return result


def _best_inputs(correlation: "np.ndarray", target: int, candidates: list[int]) -> list[int]:
    inputs: list[int] = []
    explained = 0.0
    while len(inputs) < _INPUTS:
        trials = [(_explained(correlation, target, [*inputs, i]), i) for i in candidates if i not in inputs]
        if not trials or 1 - max(trials)[0] > 0.8 * (1 - explained):
            break
        explained, best = max(trials)
        inputs.append(best)
    return inputs if explained >= _LEAST else []


def _explained(correlation: "np.ndarray", target: int, inputs: list[int]) -> float:
    among = correlation[np.ix_(inputs, inputs)] + 1e-9 * np.eye(len(inputs))
    return float(correlation[target, inputs] @ np.linalg.solve(among, correlation[target, inputs]))


def _terms(x: "np.ndarray", degree: int) -> "np.ndarray":
    """One, the inputs, and for degree 2 their products, a column each."""
    columns = [np.ones(len(x)), *x.T]
    if degree == 2:
        columns += [x[:, i] * x[:, j] for i, j in combinations_with_replacement(range(x.shape[1]), 2)]
    return np.stack(columns, axis=1)


def _fit(x: "np.ndarray") -> "np.ndarray":
    """Weights of the terms of the second degree, or of the first where curves do not help in the other half of rows."""
    degree = 2 if _rest(x, 2) < _CURVED * _rest(x, 1) else 1
    return _weights(x, degree)


def _weights(x: "np.ndarray", degree: int) -> "np.ndarray":
    terms = _terms(x[:, 1:], degree)
    size = np.abs(terms).max(axis=0)
    size[size == 0] = 1
    return np.linalg.lstsq(terms / size, x[:, 0], rcond=None)[0] / size


def _rest(x: "np.ndarray", degree: int) -> float:
    """The larger share of the variance that remains in one half of the rows with weights from the other."""
    half = len(x) // 2
    shares = []
    for fit, test in ((x[:half], x[half:]), (x[half:], x[:half])):
        rest = test[:, 0] - _terms(test[:, 1:], degree) @ _weights(fit, degree)
        shares.append(rest.var() / max(test[:, 0].var(), 1e-12))
    return max(shares)


def _holds(x: "np.ndarray") -> bool:
    half = len(x) // 2
    for fit, test in ((x[:half], x[half:]), (x[half:], x[:half])):
        weights, *_ = np.linalg.lstsq(fit[:, 1:], fit[:, 0], rcond=None)
        rest = test[:, 0] - test[:, 1:] @ weights
        if rest.var() > (1 - _LEAST) * test[:, 0].var():
            return False
    return True
