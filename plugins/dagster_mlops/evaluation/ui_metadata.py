"""An evaluation as Dagster shows it: numbers over time, tables and figures."""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import AnyContext, latest_event, misspelt
from dagster_mlops.core.metadata import table
from dagster_mlops.core.pictures import Picture, gallery
from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation.measure import Estimate, Evaluation
from dagster_mlops.evaluation.metrics import headline

RESULT = "evaluation/result"
"""End of the metadata key, after the registry's name, of the evaluation as JSON, which checks and promotion read."""

Row = Mapping[str, str | int]


def metadata_of(evaluation: Evaluation, pictures: Iterable[Picture], prefix: str) -> dict[str, Any]:
    """Numbers, tables of metrics, comparison and slices, and the figures, below `prefix`."""
    overall = evaluation.whole
    note = "; ".join(filter(None, [evaluation.warning, overall.why_not, evaluation.no_rival]))
    figures = gallery(pictures)
    # The UI shows them in this order.
    return {
        f"{prefix}/version": f"{evaluation.model}/{evaluation.version}",
        **({f"{prefix}/note": note} if note else {}),
        **table(f"{prefix}/metrics", metric_rows(evaluation)),
        **table(f"{prefix}/comparison", comparison_rows(evaluation)),
        **({f"{prefix}/figures": figures} if figures else {}),
        **table(f"{prefix}/slices", slice_rows(evaluation)),
        **table(f"{prefix}/importance", importance_rows(evaluation)),
        f"{prefix}/rows": overall.rows,
        f"{prefix}/unlabelled": evaluation.unlabelled,
        **{f"{prefix}/metric/{name}": estimate.value for name, estimate in overall.metrics.items()},
        **{f"{prefix}/difference/{name}": change.value for name, change in overall.differences.items()},
        **({f"{prefix}/wins": overall.differences[headline(overall.differences)].wins} if overall.differences else {}),
    }


def metric_rows(evaluation: Evaluation) -> list[Row]:
    """Each metric with its interval, and the metrics of the baselines on the same rows."""
    baselines = evaluation.whole.baselines
    return [
        {
            "metric": name,
            "value": f"{estimate.value:.4f}",
            "interval": _interval(estimate),
            **{who: f"{metrics[name].value:.4f}" if name in metrics else "" for who, metrics in baselines.items()},
        }
        for name, estimate in evaluation.whole.metrics.items()
    ]


def comparison_rows(evaluation: Evaluation) -> list[Row]:
    """The version compared with its rival on the same rows."""
    overall = evaluation.whole
    return [
        {
            "metric": name,
            "verdict": change.verdict,
            "wins": f"{change.wins:.1%}",
            f"version {evaluation.version}": f"{overall.metrics[name].value:.4f}",
            f"{evaluation.alias} {evaluation.rival_version}": f"{overall.rival[name].value:.4f}",
            "difference": f"{change.value:+.4f}",
            "interval": _interval(change, "+.4f"),
            "p": "" if change.p_value is None else f"{change.p_value:.2g}",
            "test": change.test,
        }
        for name, change in overall.differences.items()
    ]


def slice_rows(evaluation: Evaluation) -> list[Row]:
    """Each slice with all metrics; with a rival, how the slice compares by the headline metric.

    ``±`` is half the width of the interval.
    """
    if not evaluation.whole.metrics:
        return [{"slice": part.name, "rows": part.rows, "note": part.why_not} for part in evaluation.slices]
    first, *rest = sorted(evaluation.whole.metrics, key=lambda name: name != headline(evaluation.whole.metrics))
    rows: list[Row] = []
    for part in evaluation.slices:
        row: dict[str, str | int] = {"slice": part.name, "rows": part.rows}
        main = part.metrics.get(first)
        row |= {first: f"{main.value:.3f}" if main else "", "interval": _interval(main, ".3f") if main else ""}
        if first in evaluation.whole.differences:
            compared = part.differences.get(first)
            row[f"against {evaluation.alias}"] = f"{compared.value:+.3f}, {compared.verdict}" if compared else ""
        if any(part.why_not for part in evaluation.slices):
            row["note"] = part.why_not
        measured = {name: part.metrics.get(name) for name in rest}
        rows.append({**row, **{k: f"{v.value:.3f}{_half(v)}" if v else "" for k, v in measured.items()}})
    return rows


def slice_facts(evaluation: Evaluation) -> list[Row]:
    """Slices in full precision: one row for each slice and metric."""
    return [
        {
            "slice": part.name,
            "rows": part.rows,
            "metric": name,
            **{k: "" if v is None else repr(v) for k, v in vars(estimate).items()},
            "difference": repr(part.differences[name].value) if name in part.differences else "",
            "verdict": part.differences[name].verdict if name in part.differences else "",
        }
        for part in evaluation.slices
        for name, estimate in part.metrics.items()
    ]


def importance_rows(evaluation: Evaluation) -> list[Row]:
    """Inputs by the loss of the headline metric without them."""
    return [{"input": name, "loss": f"{loss:.4f}"} for name, loss in list(evaluation.importance.items())[:20]]


def _interval(estimate: Estimate, spec: str = ".4f") -> str:
    low, high = estimate.low, estimate.high
    return "" if low is None or high is None else f"{low:{spec}}…{high:{spec}}"


def _half(estimate: Estimate) -> str:
    low, high = estimate.low, estimate.high
    return "" if low is None or high is None else f"±{(high - low) / 2:.3f}"


def latest_evaluation(context: AnyContext, key: dg.AssetKey, partition: str | None = None) -> Evaluation:
    """The latest result of an evaluation asset, or of one of its partitions.

    Raises:
        EvaluationError: It was never materialized, or is not an evaluation asset.
    """
    event = latest_event(context.instance, key, [partition] if partition else None)
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    result: Any = next((value.value for key, value in metadata.items() if key.endswith(f"/{RESULT}")), None)
    if result is None:
        which = key.to_user_string() + (f" partition {partition}" if partition else "")
        raise EvaluationError(f"{which} has no evaluation yet. {misspelt(context, key) or 'Materialize it first.'}")
    return Evaluation.from_dict(result)
