"""One step of a watch: read what was logged since the last one, and judge the windows that are complete."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from dagster_mlops.core.timestamps import MICROSECOND
from dagster_mlops.monitoring.alarm.requests import Failed
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.detection import Judgement, Recent
from dagster_mlops.monitoring.facts import State
from dagster_mlops.monitoring.live.failed_requests import outage, with_failures
from dagster_mlops.monitoring.live.incidents import Course, Incident, Persistence, WindowScore
from dagster_mlops.monitoring.live.log_rows import rows_after, without_times_to_come
from dagster_mlops.monitoring.live.open_windows import OpenWindow, OpenWindows, first_start
from dagster_mlops.monitoring.live.progress import Progress
from dagster_mlops.monitoring.windows import Window

_AHEAD = timedelta(hours=1)  # rows with times that are further off are not counted: a clock is wrong
_REREAD = timedelta(days=2)  # rows that are logged later than this after their time are not read


class Verdict(NamedTuple):
    """The state at the end of a window. Without `judgement`, `reason` says why the window could not be judged."""

    state: State
    start: datetime
    end: datetime
    rows: int
    versions: Mapping[str, int]
    judgement: Judgement | None
    incident: Incident | None
    reason: str = ""
    requests: Failed = Failed()


class Step(NamedTuple):
    """The progress after a step, the verdicts on the windows that ended, oldest first, and what was not seen."""

    progress: Progress
    verdicts: list[Verdict]
    caught_up: bool
    rows: int


class Watch(NamedTuple):
    """An alarm over a prediction log.

    Rows that are logged more than `patience` after the end of their window come too late for it. A step reads for
    `seconds` at most, `most` rows at a time, and judges `most_windows`; the next one goes on.
    """

    alarm: Alarm
    log: Path
    rule: Persistence = Persistence()
    patience: timedelta = timedelta(seconds=30)
    seconds: float = 20
    most: int = 50_000
    most_windows: int = 2_000

    def begin(self, at: datetime) -> Progress:
        """The progress of a watch that reads the rows from `at` on."""
        return Progress(self.alarm.digest, first_start(at, self.alarm.size))

    def step(self, progress: Progress, time: datetime) -> Step:
        """Read and judge. The progress that is given stays as it is.

        Raises:
            MonitoringError: The log cannot be read.
        """
        progress = self._with_this_alarm(progress)
        windows = OpenWindows(self.alarm.size, progress.windows)
        cursor, late, rows, last_row = progress.log, progress.late, 0, progress.last_row
        ahead, deadline, caught_up = progress.ahead, monotonic() + self.seconds, False
        while not caught_up and monotonic() < deadline:
            frame, cursor = rows_after(self.log, cursor, start=progress.start, alarm=self.alarm, most=self.most)
            caught_up = frame.empty
            rows += len(frame)
            frame, is_ahead = without_times_to_come(frame, time + _AHEAD)
            ahead = time if is_ahead else ahead
            if not frame.empty:
                late += windows.add(frame, self.alarm.detector.profile, closed=progress.closed)
                newest = frame["timestamp"].iloc[-1].to_pydatetime()
                last_row = max(newest, last_row or newest)
        # Rows of a window that seems complete may be in what is still to be read.
        until = time - self.patience
        due = windows.due(until, self.most_windows) if caught_up or self.alarm.size.rows else []
        is_all = caught_up and len(due) < self.most_windows
        requests: Mapping[datetime, Failed] = {}
        if is_all or due:
            since = progress.closed or progress.start
            until = until if is_all else windows.end_of(due[-1])
            due, requests = with_failures(due, windows, self.alarm, self.log, since, until)
        recent, course, closed, verdicts = progress.recent, progress.course, progress.closed, []
        for window in due:
            end = windows.end_of(window)
            # Rows of a machine whose clock is behind may fill a window by rows after one that ends later.
            closed = max(end, closed + MICROSECOND) if closed else end
            content = Window(window.start, closed, window.counts)
            verdict, course = self._verdict(window, content, recent, course, requests.get(window.start, Failed()))
            if verdict.judgement and not verdict.judgement.alarm:
                # The days before are what a step is measured against: with an incident in them, its end would be one.
                recent = recent.after(content)
            verdicts.append(verdict)
        judgement = next((verdict.judgement for verdict in reversed(verdicts) if verdict.judgement), progress)
        after = Progress(
            alarm=self.alarm.digest,
            start=max(progress.start, closed - _REREAD) if closed else progress.start,
            log=cursor,
            windows=[windows.windows[start] for start in sorted(windows.windows)],
            closed=closed,
            last_row=last_row,
            ahead=ahead,
            recent=recent,
            course=course,
            late=late,
            score=judgement.score,
            threshold=judgement.threshold,
        )
        return Step(after, verdicts, is_all, rows)

    def _with_this_alarm(self, progress: Progress) -> Progress:
        """The progress for an alarm that was calibrated anew: rows without a verdict are read again, into its bins."""
        if progress.alarm == self.alarm.digest:
            return progress
        start = progress.closed or progress.start
        return Progress(
            self.alarm.digest, start, closed=progress.closed, last_row=progress.last_row, course=progress.course
        )

    def _verdict(
        self, window: OpenWindow, content: Window, recent: Recent, course: Course, requests: Failed
    ) -> tuple[Verdict, Course]:
        facts = (content.start, content.end, window.counts.rows, window.versions)
        if reason := self._other_model(window):
            return Verdict("undecided", *facts, None, course.incident, reason, requests), course
        judgement = outage(window.counts, requests, self.alarm) or self.alarm.detector.judge(content, recent)
        if judgement.undecided:
            return Verdict("undecided", *facts, judgement, course.incident, judgement.undecided, requests), course
        names = tuple(score.column for score in judgement.alarming)
        score = WindowScore(content.start, content.end, judgement.score, judgement.threshold, names)
        state, course = course.after(score, self.rule)
        return Verdict(state, *facts, judgement, course.incident, requests=requests), course

    def _other_model(self, window: OpenWindow) -> str:
        version = self.alarm.model_version
        rows = {v: count for v, count in window.versions.items() if v != version}
        if not version or 2 * sum(rows.values()) <= window.counts.rows:
            return ""
        most = max(rows, key=lambda v: rows[v])
        return (
            f"the alarm is calibrated for version {version} of the model, and version {most} is served. "
            f"Materialize {self.alarm.name} with a history that this version has predicted."
        )
