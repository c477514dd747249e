"""Finds a prediction by its request id in the logs of deployments and batches, and among batches without one."""

from collections.abc import Iterable
from pathlib import Path

from dagster_mlops.errors import NotFoundError
from dagster_mlops.lineage.chain.sources import EventLog, Tools
from dagster_mlops.provenance import Accessible, Deployment, Prediction, PredictionBatch, Ref, mask_credentials


def prediction_logs(events: EventLog) -> list[str]:
    """The prediction logs of every deployment and batch that a Dagster instance knows, newest first."""
    deployments = [each.prediction_log for each, _ in events.entries(Deployment) if each.prediction_log]
    batches = [batch.prediction_log for batch, _ in events.entries(PredictionBatch) if batch.prediction_log]
    return list(dict.fromkeys([*deployments, *batches]))


def find_batch(request_id: str, events: EventLog) -> Ref | None:
    """The ref of the newest batch to which a request id belongs, if the batch keeps no prediction log.

    Its predictions are in the asset alone, so that whether this one is among them is not asked.
    """
    for batch, _ in events.entries(PredictionBatch):
        if not batch.prediction_log and request_id.startswith(f"{batch.name}/"):
            return batch.ref
    return None


def find_prediction(request_id: str, logs: Iterable[str], *, tools: Tools | None = None) -> Ref:
    """The ref of the prediction, in the first of `logs` that has it.

        find_prediction("7f3c…", prediction_logs(EventLog(instance)))

    Raises:
        NotFoundError: No log has it; the message has the answer of each.
    """
    tools = tools or Tools()
    answers: list[str] = []
    for log in logs:
        ref = Ref(Prediction.tool, Prediction.role, request_id, at=log)
        tools.places.add(log)  # a log that the caller names, or one in the caller's event log
        answer = tools.ask(ref)
        if isinstance(answer, Accessible):
            return ref
        answers.append(f"\n  {log} ({_files(log)}): {answer.reason}")
    if not answers:
        raise NotFoundError(
            f"{request_id!r} was not looked for: the Dagster instance has no record of a deployment, so no prediction "
            "log is known. Name the log with --log DIR or DAGSTER_MLOPS_PREDICTION_LOG."
        )
    searched = mask_credentials("".join(answers))
    raise NotFoundError(
        f"no prediction has the request id {request_id!r}. Searched {len(answers)} prediction log(s):{searched}\n"
        "Check the id (the X-Request-ID header of the answer), or name another log with --log DIR."
    )


def _files(log: str) -> str:
    sizes = [file.stat().st_size for pattern in ("*.jsonl", "*.parquet") for file in Path(log).glob(pattern)]
    return f"{len(sizes)} file(s) with {sum(sizes):,} bytes" if sizes else "no rows here"
