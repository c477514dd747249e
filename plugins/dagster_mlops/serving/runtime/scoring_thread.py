"""A thread that scores what has queued while it scored what came before, and never waits for more."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_QUEUED, _SCORING, _FINISHING, _GIVEN_UP = "queued", "scoring", "finishing", "given up"


@dataclass(eq=False, slots=True)
class Job:
    """The rows of one request, and its result: predictions or an exception."""

    values: Sequence[tuple[Any, ...]]
    notify: Callable[["Job"], object]
    params: dict[str, Any] | None = None
    facts: Any = None
    outputs: list[Any] = field(default_factory=list)
    error: Exception | None = None
    _state: str = _QUEUED
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def give_up(self) -> bool:
        """True if it is not to be finished any more, and never will be; False if it is as good as done."""
        return self._turn(_GIVEN_UP, _QUEUED, _SCORING, _GIVEN_UP)

    def begin(self) -> bool:
        """True unless it was given up."""
        return self._turn(_SCORING, _QUEUED, _SCORING)

    def keep(self) -> bool:
        """True unless it was given up; from now on it cannot be."""
        return self._turn(_FINISHING, _SCORING)

    def _turn(self, state: str, *former: str) -> bool:
        with self._lock:
            if fits := self._state in former:
                self._state = state
        return fits


class ScoringThread:
    """Scores jobs in their order; with `joins`, those that wait together in one call of the model.

    A call of the model thus takes more rows the more requests there are, and a single request never waits for others.

    Args:
        score: Predictions for rows, with parameters for the model or None.
        finish: Called with scored jobs before they are answered, such as to log them; what it raises is their result.
        most_rows: Of a joined call.
        threads: That take jobs from the same queue.
    """

    def __init__(
        self,
        score: Callable[[Sequence[tuple[Any, ...]], dict[str, Any] | None], list[Any]],
        finish: Callable[[list[Job]], None],
        *,
        joins: bool,
        most_rows: int = 1000,
        threads: int = 1,
    ) -> None:
        self._score, self._finish, self._joins, self._most_rows = score, finish, joins, most_rows
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._calls: dict[int, tuple[float, list[Job]]] = {}  # by thread, since when it has been with these jobs
        for number in range(threads):
            threading.Thread(target=self._run, name=f"scoring-{number}", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Queue a job; its `notify` is called in the scoring thread, unless it is given up before."""
        self._queue.put(job)

    def longest_call(self) -> tuple[float, list[Job]]:
        """Seconds that the oldest unfinished call of the model has lasted, and its jobs; 0 and none between calls."""
        start, jobs = min(self._calls.copy().values(), key=lambda call: call[0], default=(time.monotonic(), []))
        return time.monotonic() - start, jobs

    def _run(self) -> None:
        late: Job | None = None
        while True:
            first = late or self._queue.get()
            late, batch, rows = None, [first], len(first.values)
            while self._joins and first.params is None and late is None:
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
                rows += len(job.values)
                if job.params is None and rows <= self._most_rows:
                    batch.append(job)
                else:
                    late = job
            if batch := [job for job in batch if job.begin()]:
                self._settle(batch)
                del self._calls[threading.get_ident()]

    def _settle(self, batch: list[Job]) -> None:
        self._calls[threading.get_ident()] = time.monotonic(), batch
        try:
            outputs = self._score([row for job in batch for row in job.values], batch[0].params)
        except Exception as error:  # noqa: BLE001 - the model's own code may raise anything
            if len(batch) > 1:  # one request is not to fail for another's rows
                for job in batch:
                    self._settle([job])
                return
            batch[0].error = error
        else:
            start = 0
            for job in batch:
                job.outputs = outputs[start : (start := start + len(job.values))]
        # A prediction is logged and answered, or neither.
        batch = [job for job in batch if job.keep()]
        self._conclude([job for job in batch if job.error is None])
        for job in batch:
            job.notify(job)

    def _conclude(self, batch: list[Job]) -> None:
        try:
            self._finish(batch)
        except Exception as error:  # noqa: BLE001 - such as a row that is too large, or a full disk
            if len(batch) == 1:
                batch[0].error = error
            for job in batch if len(batch) > 1 else ():
                self._conclude([job])
