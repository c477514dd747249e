"""A model card: what a version is, what it was made from, how good it is and what it is for, as Markdown."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.run_files import CODE, LICENCES
from dagster_mlops.mlflow.evaluation.measure import Evaluation
from dagster_mlops.mlflow.evaluation.present import (
    Row,
    comparison_rows,
    importance_rows,
    markdown_table,
    metric_rows,
    slice_rows,
)
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.provenance import NAMESPACE, ModelVersion, Record, TrainingRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

FILE = "model_card.md"
CARD = f"{NAMESPACE}.model_card"
"""Tag of a version: the hash of its card."""
# What a description of a version holds in MLflow's database.
_DESCRIPTION_LIMIT = 5000
_MOST_ROWS = 30
_LICENCES = f"{CODE}/{LICENCES}"


def model_card(
    client: "MlflowClient",
    resource: MlflowResource,
    record: ModelVersion,
    version: "MlflowModelVersion",
    training: "Run | None",
    evaluation: Evaluation,
    texts: Mapping[str, str],
) -> str:
    """The card of a version, from what is recorded of it; `texts` are sections by title, such as *Intended use*.

    Unchanged facts give an unchanged text: nothing in it depends on when or where it is written. The layout follows
    M. Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """
    made = datetime.fromtimestamp(version.creation_timestamp / 1000, tz=timezone.utc)
    run = _training_record(training)
    predicted = f"`{evaluation.label}`" + (f" = {evaluation.positive}" if evaluation.positive else "")
    sections = {
        "": [
            f"# {record.name}, version {record.version}",
            f"Registered {made:%Y-%m-%d %H:%M} UTC. Predicts {predicted} ({evaluation.task}).",
        ],
        **{title: [text.strip()] for title, text in texts.items() if text.strip()},
        "Evaluation": _evaluation(evaluation),
        "Training data": _training_data(record, run),
        "How it was made": _making(resource, record, run, training),
        "Parameters": _table([{"parameter": k, "value": v} for k, v in sorted(training.data.params.items())])
        if training and training.data.params
        else [],
        "Slices": _table(slice_rows(evaluation)),
        "What it listens to": _table(importance_rows(evaluation)),
        "Licences": _licences(client, training),
    }
    return (
        "\n\n".join(
            "\n\n".join([*([f"## {title}"] if title else []), *paragraphs])
            for title, paragraphs in sections.items()
            if paragraphs
        )
        + "\n"
    )


def attach_card(client: "MlflowClient", version: "MlflowModelVersion", card: str, run_id: str) -> None:
    """Make the card the version's description, which MLflow's UI renders, and an artifact of the run, if it changed."""
    digest = hashlib.sha256(card.encode()).hexdigest()
    description = shortened(card, f"The rest is in `{FILE}`, an artifact of run {run_id}.")
    if version.tags.get(CARD) == digest and version.description == description:
        return
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        file = Path(scratch, FILE)
        file.write_text(card)
        client.log_artifact(run_id, str(file))
    client.update_model_version(version.name, str(version.version), description)
    client.set_model_version_tag(version.name, str(version.version), CARD, digest)  # last: all of it is there


def shortened(card: str, note: str, limit: int = _DESCRIPTION_LIMIT) -> str:
    r"""As many of the card's sections, from the first one on, as fit with the note.

    >>> shortened("# A card\n\nText\n\n## Slices\n\nA long table", "See the file.", limit=32)
    '# A card\n\nText\n\nSee the file.'
    """
    if len(card) <= limit:
        return card
    kept = ""
    for section in card.split("\n\n## "):
        longer = f"{kept}\n\n## {section}" if kept else section
        if len(longer) + len(note) + 2 > limit:
            break
        kept = longer
    return f"{kept or card[: limit - len(note) - 2]}\n\n{note}"


def _evaluation(evaluation: Evaluation) -> list[str]:
    whole = evaluation.whole
    told = f"{whole.rows:,} rows of `{evaluation.rows_asset}` (content {evaluation.rows_hash[:12]})"
    if evaluation.unlabelled:
        told += f", without {evaluation.unlabelled:,} that have no label"
    if whole.why_not:
        return [f"On {told}, nothing was measured: {whole.why_not}."]
    paragraphs = [
        *([f"**Careful**: {evaluation.warning}, on which it looks better than it is."] if evaluation.warning else []),
        f"On {told}; {evaluation.confidence:.0%} percentile intervals of {evaluation.resamples:,} resamples.",
        markdown_table(metric_rows(evaluation)),
    ]
    if whole.differences:
        paragraphs += [
            f"Against {evaluation.alias} {evaluation.rival_version}, on the same rows and resamples:",
            markdown_table(comparison_rows(evaluation)),
        ]
    elif evaluation.no_rival:
        paragraphs.append(f"Not compared with another version: {evaluation.no_rival}.")
    return paragraphs


def _training_data(record: ModelVersion, run: TrainingRun | None) -> list[str]:
    lines = [f"- `{path}`, content `{md5}`" for path, md5 in sorted(record.datasets.items())]
    if run and run.feature_service:
        lines.append(f"- feature service `{run.feature_service}`, registry `{run.registry_hash[:12]}`")
    return ["\n".join(lines)] if lines else []


def _making(
    resource: MlflowResource, record: ModelVersion, run: TrainingRun | None, training: "Run | None"
) -> list[str]:
    """Facts that are known, one a line."""
    if training is None:
        return [f"MLflow run `{record.run_id}` was purged." if record.run_id else "No run made it."]
    tags, info = training.data.tags, training.info
    url = resource.run_url(info.experiment_id, info.run_id)
    link = f"[{info.run_id}]({url})" if url else f"`{info.run_id}`"
    facts: dict[str, Any] = {
        "MLflow run": link + (", deleted" if info.lifecycle_stage == "deleted" else ""),
        "code": run and run.code_commit and f"commit `{run.code_commit}`{', uncommitted changes' * bool(run.dirty)}",
        "Dagster": run and run.dagster_run_id and f"asset `{run.dagster_asset}`, run `{run.dagster_run_id}`",
        "partition": run and run.dagster_partition,
        "environment": run and run.python and f"Python {run.python}, {run.platform}",
        "lock file": run and run.lock_hash and f"`{run.lock_hash[:12]}`",
        "container": tags.get(f"{NAMESPACE}.container"),
        "GPU": tags.get(f"{NAMESPACE}.gpu"),
        "seed": None if run is None else run.seed,
    }
    return ["\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact not in (None, ""))]


def _training_record(training: "Run | None") -> TrainingRun | None:
    text = training.data.tags.get(RECORD) if training else None
    record = Record.from_json(text) if text else None
    return record if isinstance(record, TrainingRun) else None


def _licences(client: "MlflowClient", training: "Run | None") -> list[str]:
    """The licences of the packages that were installed, most frequent first, where the training has written them."""
    written = client.list_artifacts(training.info.run_id, CODE) if training else []
    if training is None or _LICENCES not in [file.path for file in written]:
        return []
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(Path(client.download_artifacts(training.info.run_id, _LICENCES, folder)).read_text())
    counts = Counter(licence or "not stated" for licence in found.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _table([{"licence": name, "packages": count} for name, count in ordered])


def _table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    left = len(rows) - _MOST_ROWS
    return [markdown_table(rows[:_MOST_ROWS]), *([f"… and {left} more."] if left > 0 else [])]
