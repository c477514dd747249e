"""Predictions of a registered version in one form, and the importance of its inputs."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dagster as dg

from dagster_mlops.core import row_values
from dagster_mlops.core.arrays import PyFuncModel, np, pd
from dagster_mlops.core.model_inputs import fitting
from dagster_mlops.core.model_loading import LoadedModel, load_stored
from dagster_mlops.core.tables import as_frame
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.evaluation.metrics import Array, Prediction, Task
from dagster_mlops.provenance import ModelVersion, mask_credentials
from dagster_mlops.tools import HoldsModels

Features: TypeAlias = "Callable[[pd.DataFrame], pd.DataFrame] | Sequence[str] | None"
# An integer label with more values than this is a quantity.
_MOST_CLASSES = 20
_BATCH = 20_000  # rows of one call of a model


read_frame = functools.partial(as_frame, tool="mlflow", error=EvaluationError)
"""A pandas frame of any table that an IO manager loads; an EvaluationError if it is not a table."""


@dataclass(frozen=True)
class Labels:
    """The answers: 0 and 1 for ``binary``, positions in `classes` for ``multiclass``, numbers for ``regression``."""

    task: Task
    values: Array
    classes: tuple[Any, ...] = ()  # binary: negative, positive


def labelled_rows(rows: "pd.DataFrame", label: str, asset: dg.AssetKey) -> "pd.DataFrame":
    """The rows with a label.

    Raises:
        EvaluationError: There are none, or there is no such column.
    """
    if label not in rows:
        raise EvaluationError(
            f"{asset.to_user_string()} has no column {label!r}; it has {', '.join(map(str, rows.columns[:30]))}. Name "
            "its column of answers as label."
        )
    labelled: pd.DataFrame = rows.dropna(subset=[label]).reset_index(drop=True)
    if labelled.empty:
        raise EvaluationError(
            f"none of the {len(rows)} rows of {asset.to_user_string()} has a {label!r}. Wait until labels have "
            "arrived, or name other rows."
        )
    return labelled


def read_groups(labelled: "pd.DataFrame", by: str | Callable[..., Any], asset: dg.AssetKey) -> Any:
    """The group of each row as a number from 0, by a column or a function of the rows; those without are a group.

    Raises:
        EvaluationError: The column is missing, or the function fails.
    """
    if callable(by):
        try:
            values = in_row_order(by(labelled), labelled)
        except Exception as error:  # whatever the user's function raises
            raise EvaluationError(
                f"rows cannot be grouped: {type(error).__name__}: {error}. Give a function of the frame that returns "
                "a value for each row."
            ) from error
    elif by in labelled:
        values = labelled[by]
    else:
        raise EvaluationError(
            f"{asset.to_user_string()} has no column {by!r} to group by; it has "
            f"{', '.join(map(str, labelled.columns[:30]))}. Name the one whose rows hang together, such as the day."
        )
    return pd.factorize(pd.Series(values), use_na_sentinel=False)[0]


def read_labels(labels: Any, *, task: Task | None, positive: Any, classes: Sequence[Any] | None) -> Labels:
    """Encode a series of labels, none of which is missing; the task follows from them unless it is given.

    Raises:
        EvaluationError: The labels do not fit the task.
    """
    values: list[Any] = list(classes or in_order(labels.unique().tolist()))
    numeric = pd.api.types.is_numeric_dtype(labels) and not pd.api.types.is_bool_dtype(labels)
    if task is None:
        integral = not numeric or bool((labels % 1 == 0).all())
        few = len(values) <= (_MOST_CLASSES if integral else 2)
        task = "regression" if numeric and not few else "binary" if len(values) <= 2 else "multiclass"
    if task == "regression":
        if not numeric:
            raise EvaluationError(f"labels such as {values[0]!r} are not numbers. Use task='binary' or 'multiclass'.")
        return Labels(task, labels.to_numpy(dtype=float))
    if task == "binary":
        if set(values) <= {0, 1}:
            values = [0, 1]  # also if they are floats or booleans
        positive = values[-1] if positive is None else positive
        negatives = [value for value in values if value != positive]
        if len(negatives) > 1:
            raise EvaluationError(
                f"labels {', '.join(map(repr, values[:10]))} are more than two. Use task='multiclass' or 'regression'."
            )
        return Labels(task, (labels == positive).to_numpy(dtype=float), (negatives[0] if negatives else None, positive))
    codes = np.asarray(pd.Categorical(labels, categories=values).codes, dtype=int)
    if (codes < 0).any():
        unknown = sorted(set(map(str, labels[codes < 0].unique())))
        raise EvaluationError(f"labels {', '.join(unknown[:10])} are not among the classes. Add them to classes=[…].")
    return Labels(task, codes, tuple(values))


def in_order(values: Collection[Any]) -> list[Any]:
    """Sorted, by type first.

    >>> in_order(["b", None, "a"])
    [None, 'a', 'b']
    """
    return sorted(values, key=lambda value: (type(value).__name__, value))


def load_version(context: dg.AssetExecutionContext, models: HoldsModels, record: ModelVersion) -> LoadedModel:
    """A version, loaded by MLflow on the terms of the registry's resource; the format is logged.

    Raises:
        ModelVersionError: It was deleted, its files are gone or were changed, loading it may run code and the resource
            does not allow that, or it cannot be loaded here.
    """
    try:
        loaded = load_stored(lambda folder: models.fetch(record, folder), pyfunc=True)
    except Exception as error:
        # The model's own code raises anything, beside MLflow's errors.
        raise ModelVersionError(
            f"version {record.version} of {record.name!r} cannot be loaded: {type(error).__name__}: "
            f"{mask_credentials(str(error))[:500]}"
        ) from error
    message = f"Loaded version {record.version} of {record.name!r}, which is stored as {loaded.format}"
    if loaded.format.runs_code:
        context.log.warning(f"{message}: {loaded.format.runs_code}.")
    else:
        context.log.info(f"{message}.")
    return loaded


def model_inputs(model: PyFuncModel, rows: "pd.DataFrame", features: Features, label: str) -> "pd.DataFrame":
    """The columns that a model takes, from the rows and the result of `features`; never the label.

    Raises:
        EvaluationError: Columns are missing, or the model takes the label as an input.
    """
    schema = model.metadata.get_input_schema()
    specs = schema.input_dict() if schema and schema.has_input_names() else {}
    if label in specs:
        raise EvaluationError(f"the model takes the label {label!r} as an input. Train it without, then evaluate.")
    unlabelled = rows.drop(columns=label)
    frame = _computed(features, unlabelled) if callable(features) else unlabelled
    names = list(specs) or (list(frame.columns) if features is None or callable(features) else list(features))
    absent = [
        name
        for name in names
        if name not in frame and name not in unlabelled and (name not in specs or specs[name].required)
    ]
    if absent:
        raise EvaluationError(
            f"the model takes {', '.join(map(repr, absent))}, which the rows lack; they have "
            f"{', '.join(map(str, list(unlabelled.columns)[:30]))}. Name another asset as rows, or make the columns in "
            "features=<function of a frame>."
        )
    inputs = frame.copy(deep=False)
    for name in names:
        if name not in frame and name in unlabelled:
            inputs[name] = unlabelled[name]
    for name, spec in specs.items():
        if name in inputs:
            inputs[name] = fitting(inputs[name], getattr(spec.type, "name", ""))
    return inputs.reindex(columns=[name for name in names if name in inputs])


def _computed(features: "Callable[[pd.DataFrame], pd.DataFrame]", rows: "pd.DataFrame") -> "pd.DataFrame":
    try:
        frame = read_frame(in_row_order(features(rows), rows))
    except Exception as error:  # whatever the user's function raises
        raise EvaluationError(f"features failed: {type(error).__name__}: {error}") from error
    if len(frame) != len(rows):
        raise EvaluationError(f"features returned {len(frame)} rows for {len(rows)}. Return one for each.")
    return frame.set_axis(rows.index)


def in_row_order(result: Any, rows: "pd.DataFrame") -> Any:
    """The result of a function of rows, in their order, which the index keeps if the function has sorted them."""
    if not isinstance(result, pd.DataFrame | pd.Series) or result.index.equals(rows.index):
        return result
    sorted_only = len(result) == len(rows) and result.index.is_unique and result.index.isin(rows.index).all()
    return result.loc[rows.index] if sorted_only else result


def predict(model: PyFuncModel, inputs: "pd.DataFrame", labels: Labels) -> Prediction:
    """The predictions of a model.

    Raises:
        EvaluationError: It refuses the rows, or its answer cannot be compared with the labels.
    """
    try:
        answer = model.predict(inputs)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        raise EvaluationError(f"the model cannot answer these rows: {row_values.refusal(error)}") from row_values.cause(
            error
        )
    return read_prediction(answer, labels, len(inputs))


def read_prediction(answer: Any, labels: Labels, rows: int) -> Prediction:
    """Probabilities, scores, classes or numbers from the answer of a model or function: (rows,) or (rows, k).

    Raises:
        EvaluationError: The shape or the values do not fit the labels.
    """
    columns = tuple(getattr(answer, "columns", ()))
    values = np.asarray(answer)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    classes = labels.classes
    if values.shape[:1] != (rows,) or values.ndim > 2:
        raise EvaluationError(f"the model's answer has shape {values.shape} for {rows} rows.")
    numeric = values.dtype != bool and np.issubdtype(values.dtype, np.number)
    if numeric and not np.isfinite(values).all():
        broken = int((~np.isfinite(values)).sum())
        raise EvaluationError(f"{broken} of the model's answers for {rows} rows are not finite. Fix the model.")
    if values.ndim == 2:
        if labels.task == "regression" or not numeric or values.shape[1] != len(classes):
            raise EvaluationError(
                f"the model answers with {values.shape[1]} columns, which does not fit {labels.task} with "
                f"{len(classes)} classes: {', '.join(map(str, classes)) or 'none'}. Name all of them, in classes=[…]."
            )
        # Columns are in the order of the sorted classes, as in scikit-learn, unless they are named.
        names, column_names = [str(value) for value in classes], [str(column) for column in columns]
        order = column_names if set(column_names) == set(names) else [str(value) for value in in_order(classes)]
        values = values.astype(float)[:, [order.index(name) for name in names]]
        return Prediction("probability", values[:, 1] if labels.task == "binary" else values, classes)
    if labels.task == "regression":
        if not numeric:
            raise EvaluationError(f"the model answers {values.tolist()[0]!r}, not a number. Is it a classifier?")
        return Prediction("number", values.astype(float))
    if labels.task == "binary" and numeric and not set(np.unique(values).tolist()) <= set(classes):
        inside = bool(((values >= 0) & (values <= 1)).all())
        return Prediction("probability" if inside else "score", values.astype(float), classes)
    return Prediction("label", _positions(values, classes), classes)


def _positions(values: Array, classes: Sequence[Any]) -> Array:
    positions = {value: position for position, value in enumerate(classes)}
    positions |= {str(value): position for value, position in positions.items()}
    answers = values.tolist()
    codes = [positions.get(value, positions.get(str(value), -1)) for value in answers]
    if -1 in codes:
        raise EvaluationError(
            f"the model answers with {answers[codes.index(-1)]!r}, which is not one of the classes "
            f"{', '.join(map(repr, classes))}. Name all of them in classes=[…]."
        )
    return np.array(codes, dtype=int)


def permutation_importance(
    model: PyFuncModel,
    inputs: "pd.DataFrame",
    labels: Labels,
    worth: Callable[[Array, Prediction], float],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """The loss of worth when one input is shuffled among the rows, greatest first.

    Permutation importance: L. Breiman, Random Forests, Machine Learning 45, 2001; of any model, A. Fisher, C. Rudin
    and F. Dominici, All Models are Wrong, but Many are Useful, JMLR 20, 2019. `worth` is better when greater. Each
    of several inputs with the same content seems less important than they are together.
    """
    order = np.random.default_rng(seed)
    size, names = len(inputs), list(inputs.columns)
    base = worth(labels.values, predict(model, inputs, labels))
    losses: dict[str, float] = {}
    # Several at once: each call of a model has a cost of its own, whatever the number of rows.
    step = max(1, _BATCH // size)
    for block in (names[start : start + step] for start in range(0, len(names), step)):
        shuffled = [inputs.copy(deep=False) for _ in block]
        for frame, name in zip(shuffled, block, strict=True):
            frame[name] = inputs[name].to_numpy()[order.permutation(size)]
        answer = predict(model, pd.concat(shuffled, ignore_index=True).astype(inputs.dtypes.to_dict()), labels)
        for position, name in enumerate(block):
            losses[str(name)] = base - worth(labels.values, answer.take(slice(position * size, (position + 1) * size)))
    return dict(sorted(losses.items(), key=lambda item: -item[1]))
