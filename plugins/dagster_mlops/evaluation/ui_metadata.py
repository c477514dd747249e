"""An evaluation as people look at it in Dagster: numbers over time, tables, figures and the model card."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import latest_event
from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation.measure import Estimate, Evaluation
from dagster_mlops.evaluation.metrics import headline
from dagster_mlops.evaluation.plots import inline

RESULT = "evaluation/result"
"""The end of the asset metadata key, after the registry's name, of the evaluation as JSON: for checks, promotion."""

Row = Mapping[str, str | int]


def metadata_of(evaluation: Evaluation, pngs: Mapping[str, bytes], prefix: str) -> dict[str, Any]:
    """Plain numbers, tables of metrics, comparison and slices, the figures, and the whole as JSON, below `prefix`."""
    whole = evaluation.whole
    note = "; ".join(filter(None, [evaluation.warning, whole.why_not, evaluation.no_rival]))
    text = "\n\n".join(inline(png, name) for name, png in pngs.items())
    # The UI shows them in this order.
    return {
        f"{prefix}/version": f"{evaluation.model}/{evaluation.version}",
        **({f"{prefix}/note": note} if note else {}),
        **_tables(prefix, metrics=metric_rows(evaluation), comparison=comparison_rows(evaluation)),
        **({f"{prefix}/figures": dg.MetadataValue.md(text)} if text else {}),
        **_tables(prefix, slices=slice_rows(evaluation), importance=importance_rows(evaluation)),
        f"{prefix}/rows": whole.rows,
        f"{prefix}/unlabelled": evaluation.unlabelled,
        **{f"{prefix}/metric/{name}": found.value for name, found in whole.metrics.items()},
        **{f"{prefix}/difference/{name}": found.value for name, found in whole.differences.items()},
        **({f"{prefix}/wins": whole.differences[headline(whole.differences)].wins} if whole.differences else {}),
        f"{prefix}/result": dg.MetadataValue.json(evaluation.to_dict()),
    }


def metric_rows(evaluation: Evaluation) -> list[Row]:
    """Each metric with its interval, and what the baselines reach on the same rows."""
    baselines = evaluation.whole.baselines
    return [
        {
            "metric": name,
            "value": f"{found.value:.4f}",
            "interval": _interval(found),
            **{who: f"{metrics[name].value:.4f}" if name in metrics else "" for who, metrics in baselines.items()},
        }
        for name, found in evaluation.whole.metrics.items()
    ]


def comparison_rows(evaluation: Evaluation) -> list[Row]:
    """Version against rival on the same rows."""
    whole = evaluation.whole
    return [
        {
            "metric": name,
            "verdict": found.verdict,
            "wins": f"{found.wins:.1%}",
            f"version {evaluation.version}": f"{whole.metrics[name].value:.4f}",
            f"{evaluation.alias} {evaluation.rival_version}": f"{whole.rival[name].value:.4f}",
            "difference": f"{found.value:+.4f}",
            "interval": _interval(found, "+.4f"),
        }
        for name, found in whole.differences.items()
    ]


def slice_rows(evaluation: Evaluation) -> list[Row]:
    """Each slice with all metrics; with a rival, how the slice compares by the headline metric.

    ``±`` is half the width of the interval.
    """
    if not evaluation.whole.metrics:
        return [{"slice": part.name, "rows": part.rows, "note": part.why_not} for part in evaluation.slices]
    first, *others = sorted(evaluation.whole.metrics, key=lambda name: name != headline(evaluation.whole.metrics))
    rows: list[Row] = []
    for part in evaluation.slices:
        row: dict[str, str | int] = {"slice": part.name, "rows": part.rows}
        found = part.metrics.get(first)
        row |= (
            {first: f"{found.value:.3f}", "interval": _interval(found, ".3f")} if found else {first: "", "interval": ""}
        )
        if first in evaluation.whole.differences:
            compared = part.differences.get(first)
            row[f"against {evaluation.alias}"] = f"{compared.value:+.3f}, {compared.verdict}" if compared else ""
        if any(part.why_not for part in evaluation.slices):
            row["note"] = part.why_not
        measured = {name: part.metrics.get(name) for name in others}
        rows.append({**row, **{k: f"{v.value:.3f}{_half(v)}" if v else "" for k, v in measured.items()}})
    return rows


def slice_facts(evaluation: Evaluation) -> list[Row]:
    """Slices as a table to compute with: one row for each slice and metric."""
    return [
        {
            "slice": part.name,
            "rows": part.rows,
            "metric": name,
            **{k: "" if v is None else repr(v) for k, v in vars(found).items()},
            "difference": repr(part.differences[name].value) if name in part.differences else "",
            "verdict": part.differences[name].verdict if name in part.differences else "",
        }
        for part in evaluation.slices
        for name, found in part.metrics.items()
    ]


def importance_rows(evaluation: Evaluation) -> list[Row]:
    """Inputs by what the headline metric loses without them."""
    return [{"input": name, "loss": f"{loss:.4f}"} for name, loss in list(evaluation.importance.items())[:20]]


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table.

    >>> print(markdown_table([{"metric": "auc", "value": "0.74"}]))
    | metric | value |
    |---|---|
    | auc | 0.74 |
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    texts = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(
        "|" + "|".join(line) + "|" if line[0] == "---" else "| " + " | ".join(line) + " |" for line in texts
    )


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _interval(found: Estimate, how: str = ".4f") -> str:
    return "" if found.low is None or found.high is None else f"{found.low:{how}}…{found.high:{how}}"


def _half(found: Estimate) -> str:
    return "" if found.low is None or found.high is None else f"±{(found.high - found.low) / 2:.3f}"


def _tables(prefix: str, **tables: Sequence[Row]) -> dict[str, dg.TableMetadataValue]:
    return {
        f"{prefix}/{name}": dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])
        for name, rows in tables.items()
        if rows
    }


def latest_evaluation(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None = None) -> Evaluation:
    """What an evaluation asset, or a partition of it, found last.

    Raises:
        EvaluationError: it was never materialized, or is no evaluation.
    """
    event = latest_event(instance, key, [partition] if partition else None)
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    result: Any = next((value.value for key, value in metadata.items() if key.endswith(f"/{RESULT}")), None)
    if result is None:
        which = key.to_user_string() + (f" partition {partition}" if partition else "")
        raise EvaluationError(f"{which} has no evaluation yet. Materialize it first.")
    return Evaluation.from_dict(result)
