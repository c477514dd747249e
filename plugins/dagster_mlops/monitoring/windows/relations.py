"""Relations between columns of numbers, learnt from a reference: what each is, given the others."""

from collections.abc import Mapping

from dagster_mlops.core.arrays import np
from dagster_mlops.monitoring.windows.learning import number_column
from dagster_mlops.monitoring.windows.numbers import GRID, SPECIAL, NumberColumn, RelationColumn

_ROWS = 20_000
_INPUTS = 3
_MOST = 20
_LEAST = 0.5  # share of the variance that the others must explain
_CANDIDATES = 12
_TAIL = 0.002  # share of rows on either side that is unusual: bins that the reference fills, too


def learn_relations(
    columns: Mapping[str, NumberColumn], cells: Mapping[str, "np.ndarray"], bins: int
) -> list[RelationColumn]:
    """The columns of which up to three others explain half of the variance, by least squares; at most 20 of them.

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
    x = table[on_grid].astype(float) - (SPECIAL + GRID // 2)
    if len(x) < 500:
        return []
    x -= x.mean(axis=0)
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
    centres = {i: table[on_grid][:, i].mean() - (SPECIAL + GRID // 2) for i in range(len(names))}
    for _, target, inputs in sorted(relations, reverse=True)[:_MOST]:
        weights, *_ = np.linalg.lstsq(x[:, inputs], x[:, target], rcond=None)
        intercept = centres[target] - sum(w * centres[i] for w, i in zip(weights, inputs, strict=True))
        by_name = {names[i]: float(w) for i, w in zip(inputs, weights, strict=True)}
        name = f"{names[target]} given {', '.join(by_name)}"
        blank = NumberColumn(name, 0.0, 1.0, ())
        draft = RelationColumn(name, names[target], by_name, float(intercept), blank)
        rest = draft.difference(columns, {key: values[::step] for key, values in cells.items()})
        # Positions are whole cells, so that the difference is not known better than that.
        fine = columns[names[target]].unit
        bins_of_rest = number_column(name, rest[np.isfinite(rest)], bins, least_spread=fine, tail=_TAIL)
        result.append(RelationColumn(name, names[target], by_name, float(intercept), bins_of_rest))
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


def _holds(x: "np.ndarray") -> bool:
    half = len(x) // 2
    for fit, test in ((x[:half], x[half:]), (x[half:], x[:half])):
        weights, *_ = np.linalg.lstsq(fit[:, 1:], fit[:, 0], rcond=None)
        rest = test[:, 0] - test[:, 1:] @ weights
        if rest.var() > (1 - _LEAST) * test[:, 0].var():
            return False
    return True
