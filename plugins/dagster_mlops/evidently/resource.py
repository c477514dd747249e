"""Evidently in process, and the folder that its reports are kept in."""

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import STATE, own_folder, write_atomically
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.resources import ToolResource
from dagster_mlops.errors import MonitoringError
from dagster_mlops.evidently.upstream import safe_html
from dagster_mlops.monitoring import Comparison, Score
from dagster_mlops.monitoring.normalise import Frame, normalise
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    import evidently
    from evidently.core.report import Snapshot as Snapshot
else:
    Snapshot = Any

# Errors of Evidently that name what the user has written.
_USERS_FAULTS = ("StatTestNotFoundError", "StatTestInvalidFeatureTypeError")
_MOST_TEXT = 100  # characters of a category
_MOST_HTML = 25_000_000  # bytes
# PSI and Jensen-Shannon distance say how large a shift is. A p-value says how sure one can be that there is any, which
# at production volumes is always. How the thresholds were found: docs/evidently.md.
DEFAULT_PRESET: Mapping[str, Any] = {
    "num_method": "psi",
    "num_threshold": 0.2,
    "cat_method": "jensenshannon",
    "cat_threshold": 0.1,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Evidently, and what it is built on, says about itself: deprecations at import, 0/0 in histograms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class EvidentlyResource(ToolResource):
    """Evidently in process: frames in, reports out, as HTML to look at and JSON to read.

        defs = dg.Definitions(
            asset_checks=[drift_check(asset="predictions", reference="training_set")],
            resources={"evidently": EvidentlyResource(reports="state/reports")},
        )

    The tool's own objects are handed out, for reports of your own::

        @dg.asset
        def summary(evidently: EvidentlyResource, flights: pd.DataFrame) -> None:
            snapshot = evidently.run([DataSummaryPreset()], evidently.dataset(flights))
            evidently.save(snapshot, folder="summary", name="2013-07")
    """

    reports: str = Field(
        default=f"{STATE}/reports", description="Folder for the reports; each check has its own folder below it."
    )
    max_rows: int = Field(default=50_000, gt=0, description="Rows a report is made of; larger frames are sampled.")
    keep: int = Field(default=20, gt=0, description="Reports kept per check (HTML is about 4 MB each); older ones go.")
    report_columns: int = Field(default=60, gt=0, description="Columns that a report shows, worst first.")
    seed: int = Field(default=0, description="Seed of the sample, so that a re-run judges the same rows.")

    def frame(self, data: Any, columns: Sequence[str] | None = None) -> Frame:
        """`data` normalised and sampled to `max_rows`."""
        return normalise(data, columns).sample(self.max_rows, self.seed)

    def dataset(self, data: Any, columns: Sequence[str] | None = None, **definition: Any) -> "evidently.Dataset":
        """An Evidently dataset of a pandas, pyarrow or polars frame, safe to put into any report.

        Columns that Evidently cannot digest (empty ones, dates) are left out. `definition` adds to the
        ``evidently.DataDefinition``, e.g. ``classification=[BinaryClassification(...)]``.
        """
        frame = data if isinstance(data, Frame) else self.frame(data, columns)
        names = columns or list(frame.kinds)
        numbers = [name for name in names if frame.kinds.get(name) == "number"]
        categories = [name for name in names if frame.kinds.get(name) == "category"]
        with quiet():
            tool = extra("evidently")
            return tool.Dataset.from_pandas(
                frame.data[[*numbers, *categories]].assign(**{name: _short(frame.data[name]) for name in categories}),
                data_definition=tool.DataDefinition(
                    **{"numerical_columns": numbers, "categorical_columns": categories, **definition}
                ),
            )

    def run(
        self,
        metrics: Sequence[Any],
        current: "evidently.Dataset",
        reference: "evidently.Dataset | None" = None,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
    ) -> Snapshot:
        """Run an Evidently report of `metrics` and presets with their tests."""
        with quiet():
            report = extra("evidently").Report(list(metrics), include_tests=True)
            return report.run(current, reference, metadata=dict(metadata or {}), tags=list(tags))

    def scores(self, reference: Frame, current: Frame, options: Mapping[str, Any], *, name: str) -> Comparison:
        """The verdicts of Evidently's ``DataDriftPreset``, and its report on the columns that it could compare.

        See :class:`dagster_mlops.monitoring.Measures`.
        """
        columns, preset = list(reference.kinds), {**DEFAULT_PRESET, **options}
        option_columns = {
            column for option, by_column in preset.items() if option.startswith("per_column") for column in by_column
        }
        if unknown := sorted(option_columns - {*reference.data, *current.data}):
            raise MonitoringError(f"options of column {', '.join(unknown)}, which is not there.")
        with quiet():
            drift = extra("evidently.presets").DataDriftPreset(columns=columns, **_for_columns(preset, columns))
        try:
            datasets = self.dataset(current, columns), self.dataset(reference, columns)
            snapshot = self.run([drift], *datasets, tags=[name])
            facts = snapshot.dict()
        except Exception as error:
            if type(error).__name__ in _USERS_FAULTS:
                raise MonitoringError(f"Evidently refuses the method of a column: {error}") from error
            if len(columns) == 1:
                # No answer is not drift.
                reason = mask_credentials(f"not compared: {error}")[:200]
                return Comparison([Score(columns[0], reason, drifted=False, compared=False)])
            # One column spoils the report: find it, and report on the others.
            single = {c: self.scores(_only(reference, [c]), _only(current, [c]), options, name=name) for c in columns}
            good = [column for column, answer in single.items() if answer.report]
            bad = [score for answer in single.values() if not answer.report for score in answer.columns]
            if len(good) == len(columns):  # each alone works, so no column is the cause
                raise
            if not good:
                return Comparison(bad)
            rest = self.scores(_only(reference, good), _only(current, good), options, name=name)
            return Comparison([*rest.columns, *bad], rest.report)
        results = {m["config"]["column"]: m for m in facts["metrics"] if "column" in m["config"]}
        # Only the status decides: a score may be a distance (high is drift) or a p-value (low is drift).
        status = {
            t["metric_config"]["params"]["column"]: t["status"].value
            for t in facts["tests"]
            if "column" in t["metric_config"]["params"]
        }
        verdicts = []
        for column in columns:
            config, drifted = results[column]["config"], status[column] == "FAIL"
            score, threshold = float(results[column]["value"]), config.get("threshold")
            verdicts.append(
                Score(
                    column,
                    "drifted" if drifted else "stable",
                    drifted=drifted,
                    method=str(config.get("method", "")),
                    score=score if score == score else None,
                    threshold=None if threshold is None else float(threshold),
                )
            )
        if len(columns) <= self.report_columns:
            return Comparison(verdicts, SnapshotReport(self, snapshot))
        return Comparison(verdicts, self._report_on_worst(verdicts, reference, current, preset, name))

    def _report_on_worst(
        self, verdicts: Sequence[Score], reference: Frame, current: Frame, preset: Mapping[str, Any], name: str
    ) -> "SnapshotReport | None":
        """A report on the worst columns: that on 500 columns has 39 MB, which no browser shows well."""
        worst = sorted(verdicts, key=lambda score: (not score.drifted, -score.beyond))
        columns = [score.column for score in worst[: self.report_columns]]
        with quiet():
            drift = extra("evidently.presets").DataDriftPreset(columns=columns, **_for_columns(preset, columns))
        snapshot = self.run([drift], self.dataset(current, columns), self.dataset(reference, columns), tags=[name])
        return SnapshotReport(self, snapshot, f"shows the worst {len(columns)} of {len(verdicts)} columns")

    def summary(self, frame: Frame, columns: Sequence[str], *, name: str) -> "SnapshotReport | None":
        """Evidently's ``DataSummaryPreset`` of a sample; see :class:`dagster_mlops.monitoring.Summarises`."""
        from dagster_mlops.evidently.quality import summarise  # for steps, not for code locations

        first = list(columns)[: self.report_columns]
        if frame.data.empty or not first:
            return None
        left_out = f"shows the worst {len(first)} of {len(columns)} columns" if len(first) < len(columns) else ""
        sample = frame.sample(self.max_rows, self.seed)
        with quiet():
            return SnapshotReport(self, summarise(self, sample, first, tags=[name]), left_out)

    def performance_report(
        self, labelled: Any, *, target: str, prediction: str, task: str, threshold: float, name: str
    ) -> "SnapshotReport":
        """Evidently's metrics of a frame of labels and predictions.

        See :class:`dagster_mlops.monitoring.ReportsPerformance`.
        """
        from dagster_mlops.evidently.performance import measured  # for steps, not for code locations

        columns = {"target": target, "prediction": prediction}
        with quiet():
            return SnapshotReport(
                self, measured(self, labelled, **columns, task=task, threshold=threshold, tags=[name])
            )

    def report_path(self, *, folder: str, name: str) -> Path:
        """The HTML file of a report, known before :meth:`save` writes it, so that a record can name it."""
        return Path(self.reports).resolve() / _file_name(folder) / f"{_file_name(name)}.html"

    def save(self, snapshot: Snapshot, *, folder: str, name: str, record: Mapping[str, Any] | None = None) -> Path:
        """Write a snapshot as HTML and, beside it, JSON with `record`; drop the oldest reports of the folder.

        The same name overwrites, so a retried step leaves one report. Readers never see half a file.

        Raises:
            MonitoringError: the folder cannot be written, or the report is larger than 25 MB.
        """
        path = self.report_path(folder=folder, name=name)
        with quiet():
            html = safe_html(snapshot)
            content = {"record": dict(record or {}), "report": json.loads(snapshot.json())}
        if len(html) > _MOST_HTML:
            raise MonitoringError(
                f"the report has {len(html) / 1e6:.0f} MB, and browsers show up to {_MOST_HTML / 1e6:.0f} well. "
                "Lower EvidentlyResource(report_columns=...) or name fewer columns."
            )
        try:
            own_folder(Path(self.reports))
            write_atomically(path, html, private=True)
            write_atomically(path.with_suffix(".json"), json.dumps(content), private=True)
            reports = sorted(path.parent.glob("[!.]*.html"), key=lambda p: p.stat().st_mtime, reverse=True)
            for old in reports[self.keep :]:
                old.unlink(missing_ok=True)
                old.with_suffix(".json").unlink(missing_ok=True)
        except OSError as error:
            raise MonitoringError(
                f"cannot write a report into {path.parent}: {error}. "
                "Point EvidentlyResource(reports=...) at a folder that this process may write."
            ) from error
        return path


@lazy_dataclass(frozen=True)
class SnapshotReport:
    """An Evidently snapshot as a report in the resource's folder; see :class:`dagster_mlops.monitoring.ToolReport`."""

    evidently: EvidentlyResource
    snapshot: Snapshot
    left_out: str = ""

    def path(self, *, folder: str, name: str) -> Path:
        """The file that :meth:`save` will write."""
        return self.evidently.report_path(folder=folder, name=name)

    def save(self, *, folder: str, name: str, record: Mapping[str, Any]) -> Path:
        """Write the report, and `record` beside it."""
        return self.evidently.save(self.snapshot, folder=folder, name=name, record=record)


def _short(values: Any) -> Any:
    """Categories of a length that a report can show; two that are cut stay two."""
    texts = [text for text in values.unique() if isinstance(text, str) and len(text) > _MOST_TEXT]
    if not texts:
        return values
    short = {
        text: f"{text[:_MOST_TEXT]}… {hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}" for text in texts
    }
    return values.map(lambda text: short.get(text, text), na_action="ignore")


def _only(frame: Frame, columns: list[str]) -> Frame:
    return Frame(frame.data, {column: frame.kinds[column] for column in columns})


def _for_columns(preset: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    """Evidently refuses per-column options of columns that are not in the report."""
    return {
        option: {c: v for c, v in value.items() if c in columns} if option.startswith("per_column") else value
        for option, value in preset.items()
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", text).strip(".") or "_"
