"""One evaluation: a version, its rival and the baselines on the same rows, all together and slice by slice."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation.metrics import (
    Array,
    Metric,
    Prediction,
    Task,
    bootstrap,
    estimate,
    greater_is_better,
    interval,
    scored,
)
from dagster_mlops.evaluation.paired_tests import PairedTest, paired_test
from dagster_mlops.evaluation.predictions import Labels, in_row_order

SliceBy = str | Mapping[str, "str | Callable[[pd.DataFrame], Any]"]
Verdict = Literal["better", "worse", "no difference shown"]
# A column with more values than this is cut: numbers into quarters, others into the most frequent and the rest.
_MOST_SLICES = 20
_RAREST_CLASS = 5  # rows; with fewer, the metrics of this class in a slice are chance


Probability = Annotated[float, Field(ge=0, le=1)]
"""A float from 0 to 1; of a stored evaluation, others are refused."""


@dataclass(frozen=True)
class Estimate:
    """A metric with its confidence interval, which is open where resamples gave none."""

    value: FiniteFloat
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """Version minus rival, on the same rows. `wins` is the share of resamples in which the version is better.

    `p_value` is the probability of such a difference, or a better one, if the version were not better, by the test
    `test`; `p_worse` that of such a one, or a worse one, if it were not worse. They are None if no test applies, for
    the reason that `test` then is.
    """

    wins: float = 0.5
    verdict: Verdict = "no difference shown"
    p_value: Probability | None = None
    test: str = ""
    p_worse: Probability | None = None


@dataclass(frozen=True)
class Part:
    """The measurements on a part of the rows; `why_not` is the reason if there are none."""

    name: str
    rows: int
    why_not: str = ""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    rival: Mapping[str, Estimate] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model version, from which tables, plots, checks, promotion and the model card are made."""

    model: str
    version: str
    run_id: str
    task: Task
    label: str
    rows_asset: str
    rows_hash: str
    unlabelled: int
    positive: str  # binary: the label that counts as yes
    resamples: int
    confidence: float
    seed: int
    whole: Part
    slices: tuple[Part, ...] = ()
    alias: str = ""
    rival_version: str = ""
    no_rival: str = ""  # why there is no comparison
    lower_is_better: tuple[str, ...] = ()
    warning: str = ""
    group: str = ""  # column or function whose equal values are rows that hang together
    importance: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": 1, **dataclasses.asdict(self), "slices": [dataclasses.asdict(part) for part in self.slices]}

    def to_json(self) -> str:
        """One line of JSON, the same for the same evaluation."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Evaluation":
        """Read what :meth:`to_dict` wrote.

        Raises:
            EvaluationError: Another version of this library wrote it.
        """
        try:
            return TypeAdapter(Evaluation).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise EvaluationError(
                f"an evaluation of schema {data.get('schema')!r} cannot be read: {'.'.join(map(str, first['loc']))}: "
                f"{first['msg']}. Evaluate again."
            ) from error


@dataclass(frozen=True)
class Plan:
    """The parameters of a measurement. `user_metrics` are functions of labels and predictions, by name."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    min_rows: int = 50
    threshold: float = 0.5
    user_metrics: Mapping[str, Metric] = field(default_factory=dict)
    lower_is_better: Collection[str] = ()


def measure(
    name: str,
    labels: Labels,
    mask: Array,
    model: Prediction,
    rival: Prediction | None,
    baselines: Mapping[str, Prediction],
    plan: Plan,
    groups: Array | None = None,
) -> Part:
    """The metrics of every model on the rows of `mask`, and the comparison of `model` with its rival.

    The rival and the version are scored on the same resamples, so that what makes a resample easy cancels out. Rows of
    one of the `groups`, numbered from 0, are drawn and tested together.
    """
    values = labels.values[mask]
    why_not = _too_few(values, labels, plan.min_rows)
    if why_not:
        return Part(name, len(values), why_not)
    answers = [model, *([rival] if rival else []), *baselines.values()]
    options: dict[str, Any] = {"threshold": plan.threshold, "user_metrics": plan.user_metrics}
    models = [scored(labels.task, values, answer.take(mask), **options) for answer in answers]
    points = estimate(models)
    within = None if groups is None else np.unique(groups[mask], return_inverse=True)[1]
    samples = bootstrap(models, resamples=plan.resamples, seed=plan.seed, groups=within)

    def difference(metric: str) -> Difference:
        sign = 1 if greater_is_better(metric, plan.lower_is_better) else -1
        change = metrics[metric].value - rivals[metric].value
        return _difference(
            change,
            samples[0][metric] - samples[1][metric],
            paired_test(metric, models[0], models[1], sign, within),
            sign,
            plan,
        )

    def estimates(position: int) -> dict[str, Estimate]:
        return {
            metric: Estimate(value, *(interval(samples[position][metric], plan.confidence) or ()))
            for metric, value in points[position].items()
            if np.isfinite(value)
        }

    metrics, rivals = estimates(0), estimates(1) if rival else {}
    return Part(
        name,
        len(values),
        metrics=metrics,
        rival=rivals,
        differences={
            metric: difference(metric)
            for metric in metrics
            if metric in rivals and greater_is_better(metric) is not None
        },
        baselines={baseline: estimates(len(answers) - len(baselines) + i) for i, baseline in enumerate(baselines)},
    )


def slices_of(rows: "pd.DataFrame", slices: Sequence[SliceBy]) -> Iterator[tuple[str, Array]]:
    """Names and masks of the slices: the values of a column, or the rows for which a query or function is true.

    Raises:
        EvaluationError: A column is missing, or a condition does not give one boolean per row.
    """
    for by in slices:
        if isinstance(by, str):
            if by not in rows:
                raise EvaluationError(
                    f"there is no column {by!r} to slice by; the rows have "
                    f"{', '.join(map(str, rows.columns[:30]))}. Name one of them, or give {{name: condition}}."
                )
            values = _grouped(rows[by])
            for value in values.cat.categories:
                yield f"{by}={value}", (values == value).to_numpy()
            continue
        for name, condition in by.items():
            try:
                mask = in_row_order(condition(rows), rows) if callable(condition) else rows.eval(condition)
                mask = np.asarray(pd.Series(mask).astype("boolean").fillna(False), dtype=bool)
            except Exception as error:  # whatever the user's function or pandas' parser raises
                raise EvaluationError(
                    f"slice {name!r} cannot be cut: {type(error).__name__}: {error}. Give a function of the frame, or "
                    "a condition such as 'distance > 1000'."
                ) from error
            if mask.shape != (len(rows),):
                raise EvaluationError(f"slice {name!r} gave {mask.shape} for {len(rows)} rows. Give one truth per row.")
            yield name, mask


def trivial_baseline(labels: Labels) -> tuple[str, Prediction]:
    """The best prediction that is the same for all rows: the shares of the classes, or the mean."""
    values, size = labels.values, len(labels.values)
    if labels.task == "regression":
        return "mean", Prediction("number", np.full(size, values.mean()))
    if labels.task == "binary":
        return "majority", Prediction("probability", np.full(size, values.mean()), labels.classes)
    shares = np.bincount(values, minlength=len(labels.classes)) / size
    return "majority", Prediction("probability", np.tile(shares, (size, 1)), labels.classes)


def _grouped(values: Any) -> Any:
    """At most `_MOST_SLICES` + 1 categories; missing values are one of them."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)  # categories that do not occur are no slices, and "other" is not a category
    present = values.dropna()
    if present.nunique() > _MOST_SLICES and pd.api.types.is_numeric_dtype(values):
        values = pd.qcut(values, 4, duplicates="drop", precision=3)
        order = [str(category) for category in values.cat.categories]
    else:
        frequent = present.value_counts()
        names = list(frequent.index[:_MOST_SLICES])
        values = values.where(values.isin(names) | values.isna(), "other")
        order = [str(value) for value in names] + ["other"] * (len(frequent) > len(names))
    text = values.astype(object).where(values.notna(), "missing").map(str)
    return text.astype(pd.CategoricalDtype([*dict.fromkeys([*order, *["missing"] * bool(len(values) > len(present))])]))


def _too_few(values: Array, labels: Labels, min_rows: int) -> str:
    if len(values) < min_rows:
        return f"not enough rows: {len(values)}, min_rows={min_rows}"
    if labels.task != "binary":
        return ""
    yes = int(values.sum())
    rarest = min(yes, len(values) - yes)
    if rarest == 0:
        return f"all {len(values)} labels are {labels.classes[1] if yes else labels.classes[0]}"
    return f"not enough rows of one class: {rarest}" if rarest < _RAREST_CLASS else ""


def _difference(value: float, samples: Array, test: PairedTest, sign: int, plan: Plan) -> Difference:
    samples = samples[np.isfinite(samples)]
    bounds = interval(samples, plan.confidence)
    # A tie is half a win, so that neither of two copies of one model is better.
    wins = float((np.sign(sign * samples).mean() + 1) / 2) if len(samples) else 0.5
    gains = [sign * bound for bound in bounds or (0, 0)]
    verdict: Verdict = "better" if min(gains) > 0 else "worse" if max(gains) < 0 else "no difference shown"
    return Difference(
        value, *(bounds or (None, None)), wins, verdict, test.better, test.why_not or test.method, test.worse
    )
