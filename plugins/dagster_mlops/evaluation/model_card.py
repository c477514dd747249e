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

from dagster_mlops.core.markdown import Markdown, code, formatted, joined, table, text
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

    `origin` says which run made the version; `licences` are those of the installed packages, by name.
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


def model_card(version: ModelVersion, training: Training, evaluation: Evaluation, texts: Mapping[str, str]) -> Markdown:
    """The card of a version, from what is recorded of it; `texts` are sections by title, such as *Intended use*.

    Unchanged facts give an unchanged text: nothing in it depends on when or where it is written. The layout follows
    M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """
    label, positive = code(evaluation.label), evaluation.positive
    predicted = formatted("{} = {}", label, positive) if positive else label
    registered = f"Registered {training.registered:%Y-%m-%d %H:%M} UTC. " if training.registered else ""
    sections = {
        "": [
            formatted("# {}, version {}", version.name, version.version),
            formatted("{}Predicts {} ({}).", Markdown(registered), predicted, evaluation.task),
        ],
        **{title: [Markdown(section.strip())] for title, section in texts.items() if section.strip()},
        "Evaluation": _evaluation(evaluation),
        "Training data": _training_data(version, training.record),
        "How it was made": _making(training),
        "Parameters": _table([{"parameter": k, "value": v} for k, v in sorted(training.params.items())]),
        "Slices": _table(ui_metadata.slice_rows(evaluation)),
        "Most important inputs": _table(ui_metadata.importance_rows(evaluation)),
        "Licences": _licences(training.licences),
    }
    parts = [
        part
        for title, paragraphs in sections.items()
        if paragraphs
        for part in (formatted("## {}", title) if title else "", *paragraphs)
    ]
    return Markdown(joined(parts) + "\n")


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


def _evaluation(evaluation: Evaluation) -> list[Markdown]:
    overall, asset, digest = evaluation.whole, code(evaluation.rows_asset), evaluation.rows_hash[:12]
    rows = formatted("{:,} rows of {} (content {})", overall.rows, asset, digest)
    if evaluation.unlabelled:
        rows = formatted("{}, without {:,} that have no label", rows, evaluation.unlabelled)
    if overall.why_not:
        return [formatted("On {}, nothing was measured: {}.", rows, overall.why_not)]
    careful = formatted("**Careful**: {}, on which it looks better than it is.", evaluation.warning)
    bounds = "On {}; {:.0%} percentile intervals of {:,} resamples."
    paragraphs = [
        *([careful] if evaluation.warning else []),
        formatted(bounds, rows, evaluation.confidence, evaluation.resamples),
        table(ui_metadata.metric_rows(evaluation)),
    ]
    if overall.differences:
        rival = evaluation.alias, evaluation.rival_version
        paragraphs += [
            formatted("Against {} {}, on the same rows and resamples:", *rival),
            table(ui_metadata.comparison_rows(evaluation)),
        ]
    elif evaluation.no_rival:
        paragraphs.append(formatted("Not compared with another version: {}.", evaluation.no_rival))
    return paragraphs


def _training_data(record: ModelVersion, run: TrainingRun | None) -> list[Markdown]:
    lines = [formatted("- {}, content {}", code(path), code(md5)) for path, md5 in sorted(record.datasets.items())]
    if run and run.feature_service:
        service, registry = code(run.feature_service), code(run.registry_hash[:12])
        lines.append(formatted("- feature service {}, registry {}", service, registry))
    return [joined(lines, "\n")] if lines else []


def _making(training: Training) -> list[Markdown]:
    """The facts on record, one a line."""
    run = training.record
    facts: dict[str, Any] = {
        "code": run
        and run.code_commit
        and formatted("commit {}{}", code(run.code_commit), ", uncommitted changes" * bool(run.dirty)),
        "Dagster": run
        and run.dagster_run_id
        and formatted("asset {}, run {}", code(run.dagster_asset), code(run.dagster_run_id)),
        "partition": run and run.dagster_partition,
        "environment": run and run.python and f"Python {run.python}, {run.platform}",
        "lock file": run and run.lock_hash and code(run.lock_hash[:12]),
        "container": training.container,
        "GPU": training.gpu,
        "seed": None if run is None else run.seed,
    }
    present = {name: fact for name, fact in facts.items() if fact not in (None, "")}
    lines = [text(training.origin), *(formatted("{}: {}", name, fact) for name, fact in present.items())]
    return [joined((formatted("- {}", line) for line in lines if line), "\n")] if any(lines) else []


def _licences(licences: Mapping[str, str]) -> list[Markdown]:
    """The licences of the packages that were installed, most frequent first."""
    counts = Counter(licence or "not stated" for licence in licences.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _table([{"licence": name, "packages": count} for name, count in ordered])


def _table(rows: list[ui_metadata.Row]) -> list[Markdown]:
    if not rows:
        return []
    left = len(rows) - _MOST_ROWS
    return [table(rows[:_MOST_ROWS]), *([formatted("… and {} more.", left)] if left > 0 else [])]
