"""The rows of a batch in a prediction log: each once, however often it is scored, and wherever that was killed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster_mlops.core.files import exclusive
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.errors import PredictionError
from dagster_mlops.provenance import PredictionBatch
from dagster_mlops.serving.runtime import LogRules, PredictionLog

_WAIT = 3600.0  # seconds for another run that scores the same partition


class BatchLog:
    """Appends those rows of a batch that the log does not have; without a log, none."""

    def __init__(self, log: PredictionLog | None, logged: set[str]) -> None:
        self._log, self._logged = log, logged
        self.appended, self.before = 0, len(logged)

    def append(self, ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Append rows; those that are there already are left out.

        Raises:
            PredictionError: a row is too large for the log.
            OSError: the disk refuses them.
        """
        positions = [n for n, request_id in enumerate(ids) if request_id not in self._logged]
        if self._log is None or not positions:
            return
        try:
            self._log.write(
                inputs=[inputs[n] for n in positions],
                outputs=[outputs[n] for n in positions],
                request_ids=[ids[n] for n in positions],
            )
        except (ValueError, TypeError) as error:
            raise PredictionError(f"the rows cannot be logged: {error}") from None
        self.appended += len(positions)


@contextmanager
def batch_log(record: PredictionBatch, rules: LogRules) -> Iterator[BatchLog]:
    """The prediction log that a batch names, for one run that scores it; another run of the same partition waits.

    Raises:
        PredictionError: another run holds the partition for an hour, or the rules need a key that is not there.
    """
    if not record.prediction_log:
        yield BatchLog(None, set())
        return
    folder, batch_id = Path(record.prediction_log), record.ref.id
    private_folder(folder)
    lock = folder / f".batch-{hashlib.sha256(record.name.encode()).hexdigest()[:16]}.lock"
    with exclusive(lock, _WAIT, error=PredictionError):
        logged: set[str] = set()
        for part in PredictionLog.frames(folder, deployment=record.name, columns=["request_id", "bento"]):
            logged.update(part.loc[part["bento"] == batch_id, "request_id"])
        facts = record.to_dict()
        names = ("dagster_run_id", "dagster_asset", "dagster_partition")
        try:
            log = PredictionLog(
                folder,
                deployment=record.name,
                bento=batch_id,
                model_name=record.model_name,
                model_version=record.model_version,
                sync_seconds=0,
                rules=rules,
                facts={
                    "upstream": [record.ref.to_dict(), *facts.get("upstream", [])],
                    **{name: facts[name] for name in names if name in facts},
                },
            )
        except ValueError as error:
            raise PredictionError(str(error)) from None
        try:
            yield BatchLog(log, logged)
        finally:
            log.close()
