"""The model card of a version, and the capability of a registry to keep it with the evaluation.

Where a registry lacks that, Dagster alone keeps them.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import dagster as dg

from dagster_mlops.evaluation import ui_metadata
from dagster_mlops.evaluation.measure import Evaluation
from dagster_mlops.provenance import NAMESPACE, ModelVersion, TrainingRun

EVALUATION = f"{NAMESPACE}.evaluation"
"""Key of the note on a version about its latest evaluation; in MLflow also a tag of the evaluation's run, its hash."""
Pngs = Mapping[str, bytes]
_SUMMARY_LIMIT = 5000  # characters of a version's tag in MLflow's database
_MOST_ROWS = 30


@dataclass(frozen=True, kw_only=True)
class Training:
    """The facts of a version's training that its model card shows.

    `origin` says which run made the version, in Markdown; `licences` are those of the installed packages, by name.
    """

    registered: datetime | None = None
    origin: str = ""
    record: TrainingRun | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    gpu: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class KeepsEvaluations(Protocol):
    """A registry that shows evaluations and model cards beside its versions."""

    def training(self, version: ModelVersion) -> Training:
        """The facts of a version's training."""
        ...

    def keep_evaluation(
        self, context: dg.AssetExecutionContext, version: ModelVersion, evaluation: Evaluation, pngs: Pngs, card: str
    ) -> tuple[str, str]:
        """Keep an evaluation, its figures and the model card; the same result again is kept once.

        Returns:
            Id and address of the run that they are kept as; the address is empty if it has none.
        """
        ...


def summary(evaluation: Evaluation, run_id: str) -> str:
    """The note on a version about its latest evaluation: the run that keeps it, rows, metrics and verdicts."""
    facts: dict[str, Any] = {
        "run_id": run_id,
        "rows": evaluation.whole.rows,
        "rows_asset": evaluation.rows_asset,
        "rows_hash": evaluation.rows_hash,
        "metrics": {name: [metric.value, metric.low, metric.high] for name, metric in evaluation.whole.metrics.items()},
    }
    if evaluation.whole.differences:
        facts["compared_with"] = evaluation.rival_version
        facts["verdicts"] = {name: change.verdict for name, change in evaluation.whole.differences.items()}
    text = json.dumps(facts)
    return text if len(text) <= _SUMMARY_LIMIT else json.dumps({"run_id": run_id})


def model_card(version: ModelVersion, training: Training, evaluation: Evaluation, texts: Mapping[str, str]) -> str:
    """The card of a version, from what is recorded of it; `texts` are sections by title, such as *Intended use*.

    Unchanged facts give an unchanged text: nothing in it depends on when or where it is written. The layout follows
    M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """
    predicted = f"`{evaluation.label}`" + (f" = {evaluation.positive}" if evaluation.positive else "")
    registered = f"Registered {training.registered:%Y-%m-%d %H:%M} UTC. " if training.registered else ""
    sections = {
        "": [
            f"# {version.name}, version {version.version}",
            f"{registered}Predicts {predicted} ({evaluation.task}).",
        ],
        **{title: [text.strip()] for title, text in texts.items() if text.strip()},
        "Evaluation": _evaluation(evaluation),
        "Training data": _training_data(version, training.record),
        "How it was made": _making(training),
        "Parameters": _table([{"parameter": k, "value": v} for k, v in sorted(training.params.items())]),
        "Slices": _table(ui_metadata.slice_rows(evaluation)),
        "Most important inputs": _table(ui_metadata.importance_rows(evaluation)),
        "Licences": _licences(training.licences),
    }
    return (
        "\n\n".join(
            "\n\n".join([*([f"## {title}"] if title else []), *paragraphs])
            for title, paragraphs in sections.items()
            if paragraphs
        )
        + "\n"
    )


def shortened(card: str, note: str, limit: int) -> str:
    r"""As many of the card's sections, from the first one on, as fit with the note.

    >>> shortened("# A card\n\nText\n\n## Slices\n\nA long table", "See the file.", limit=32)
    '# A card\n\nText\n\nSee the file.'
    """
    if len(card) <= limit:
        return card
    beginning = ""
    for section in card.split("\n\n## "):
        longer = f"{beginning}\n\n## {section}" if beginning else section
        if len(longer) + len(note) + 2 > limit:
            break
        beginning = longer
    return f"{beginning or card[: limit - len(note) - 2]}\n\n{note}"


def _evaluation(evaluation: Evaluation) -> list[str]:
    overall = evaluation.whole
    rows = f"{overall.rows:,} rows of `{evaluation.rows_asset}` (content {evaluation.rows_hash[:12]})"
    if evaluation.unlabelled:
        rows += f", without {evaluation.unlabelled:,} that have no label"
    if overall.why_not:
        return [f"On {rows}, nothing was measured: {overall.why_not}."]
    paragraphs = [
        *([f"**Careful**: {evaluation.warning}, on which it looks better than it is."] if evaluation.warning else []),
        f"On {rows}; {evaluation.confidence:.0%} percentile intervals of {evaluation.resamples:,} resamples.",
        ui_metadata.markdown_table(ui_metadata.metric_rows(evaluation)),
    ]
    if overall.differences:
        paragraphs += [
            f"Against {evaluation.alias} {evaluation.rival_version}, on the same rows and resamples:",
            ui_metadata.markdown_table(ui_metadata.comparison_rows(evaluation)),
        ]
    elif evaluation.no_rival:
        paragraphs.append(f"Not compared with another version: {evaluation.no_rival}.")
    return paragraphs


def _training_data(record: ModelVersion, run: TrainingRun | None) -> list[str]:
    lines = [f"- `{path}`, content `{md5}`" for path, md5 in sorted(record.datasets.items())]
    if run and run.feature_service:
        lines.append(f"- feature service `{run.feature_service}`, registry `{run.registry_hash[:12]}`")
    return ["\n".join(lines)] if lines else []


def _making(training: Training) -> list[str]:
    """The facts on record, one a line."""
    run = training.record
    facts: dict[str, Any] = {
        "code": run and run.code_commit and f"commit `{run.code_commit}`{', uncommitted changes' * bool(run.dirty)}",
        "Dagster": run and run.dagster_run_id and f"asset `{run.dagster_asset}`, run `{run.dagster_run_id}`",
        "partition": run and run.dagster_partition,
        "environment": run and run.python and f"Python {run.python}, {run.platform}",
        "lock file": run and run.lock_hash and f"`{run.lock_hash[:12]}`",
        "container": training.container,
        "GPU": training.gpu,
        "seed": None if run is None else run.seed,
    }
    lines = [training.origin, *(f"{name}: {fact}" for name, fact in facts.items() if fact not in (None, ""))]
    return ["\n".join(f"- {line}" for line in lines if line)] if any(lines) else []


def _licences(licences: Mapping[str, str]) -> list[str]:
    """The licences of the packages that were installed, most frequent first."""
    counts = Counter(licence or "not stated" for licence in licences.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _table([{"licence": name, "packages": count} for name, count in ordered])


def _table(rows: list[ui_metadata.Row]) -> list[str]:
    if not rows:
        return []
    left = len(rows) - _MOST_ROWS
    return [ui_metadata.markdown_table(rows[:_MOST_ROWS]), *([f"… and {left} more."] if left > 0 else [])]
