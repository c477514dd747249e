"""Data quality of any dataframe-like asset as an asset check, with or without a tool's report on it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.monitoring.comparison.measure import ToolReport
from dagster_mlops.monitoring.frames import load_frame, partitions_to_check, reference_partitions_of
from dagster_mlops.monitoring.normalise import Frame, Kind, normalise
from dagster_mlops.monitoring.quality.expectations import LESSONS, Expectations, Lesson
from dagster_mlops.monitoring.quality.rules import Rules
from dagster_mlops.monitoring.results import SHOWN, Severity, evaluation_id, judged, saved_report, with_deps

_MOST_DRAWN = 50_000  # rows of a picture


@runtime_checkable
class Summarises(Protocol):
    """A resource of a tool that sums up one table in a report of its own."""

    def summary(self, frame: Frame, columns: Sequence[str], *, name: str) -> ToolReport | None:
        """A report on `columns`, worst first; None where there is nothing to show."""
        ...


def data_quality_check(
    *,
    asset: AssetLike,
    name: str = "data_quality",
    columns: Sequence[str] | None = None,
    max_missing_share: float | Mapping[str, float] = 1.0,
    max_malformed_share: float = 0.0,
    min_rows: int = 1,
    max_rows: int | None = None,
    types: Mapping[str, Kind] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    categories: Mapping[str, Sequence[Any]] | None = None,
    at_least: Mapping[str, str] | None = None,
    no_duplicates_of: Sequence[str] | None = None,
    time: str | None = None,
    max_age: timedelta | None = None,
    reference: AssetLike | None = None,
    reference_partitions: Sequence[str] | None = None,
    learn: Sequence[Lesson] = LESSONS,
    tolerance: float = 0.01,
    tool: str | None = None,
    resource_key: str = "",
    severity: Severity = "ERROR",
    blocking: bool = False,
    description: str | None = None,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """Check one dataframe as it came: rows, types, missing, malformed, out-of-range, unknown, repeated and old values.

        data_quality_check(
            asset="raw_weather", reference="good_weather", max_missing_share={"temp": 0.05},
            ranges={"temp": (-30, 120)}, at_least={"temp": "dewp"}, no_duplicates_of=["origin", "time_hour"],
            time="time_hour", max_age=timedelta(hours=3), blocking=True,
        )

    All rows are counted. ``<tool>/state`` is ``ok`` or ``detected``; the tool is ``monitoring`` where none is named.

    Args:
        columns: Columns that must be there and are checked; by default all that are there. Those named in the other
            options must be there, too.
        max_missing_share: Highest allowed share of missing values, for all columns or by column.
        max_malformed_share: Highest allowed share, in any column, of infinities and of values unlike the others
            (text among numbers).
        min_rows: Fewest rows.
        max_rows: Most rows.
        types: ``number``, ``category`` (text, true/false) or ``date`` by column.
        ranges: Lowest and highest allowed value by column, both inclusive; missing values are not out of range.
        categories: Allowed values by column.
        at_least: Column, and another that is never greater than it in the same row: ``{"temp": "dewp"}``.
        no_duplicates_of: Columns whose values together identify a row. Whole numbers are compared exactly.
        time: Column of times; those without a time zone are UTC.
        max_age: How old the newest `time` may be.
        reference: Asset that was good: what its columns have in common is expected, where no option says otherwise.
        reference_partitions: Partitions of the reference; see :func:`drift_check`.
        learn: Parts that are learnt from it: ``types``, ``missing`` shares, ``ranges``, ``categories`` and ``orders``
            (columns that were never below another one).
        tolerance: Share of rows that may differ from the reference, beside what chance explains (4 standard errors).
        tool: Measuring tool whose resource writes a report (:class:`Summarises`), such as ``evidently``.
        resource_key: Key of that resource, unless it is `tool`.
        check_options: Anything else that :func:`dagster.asset_check` takes.

    Raises:
        DagsterInvalidDefinitionError: an argument with which the check would say the same of every table.
    """
    refuse_mistyped(data_quality_check, locals())
    key, reference_key = asset_key(asset), asset_key(reference) if reference else None
    prefix, resource_key = tool or "monitoring", resource_key or tool or ""
    rules = Rules(
        columns=columns,
        max_missing_share=max_missing_share,
        max_malformed_share=max_malformed_share,
        min_rows=min_rows,
        max_rows=max_rows,
        types=types or {},
        ranges=ranges or {},
        categories=categories or {},
        at_least=at_least or {},
        no_duplicates_of=no_duplicates_of or (),
        time=time,
        max_age=max_age,
        tolerance=tolerance,
    )
    refuse_useless(
        f"data_quality_check of {key.to_user_string()}",
        {
            **rules.faults(),
            f"learn={learn!r} is not a list of some of {', '.join(LESSONS)}": not learn,
        },
    )

    def evaluate(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        # For steps, not for code locations.
        from dagster_mlops.monitoring.plots import distributions
        from dagster_mlops.monitoring.quality.examine import examine

        id, checked = evaluation_id(context), partitions_to_check(context, key)
        expected, notes = Expectations(), {}
        if reference_key:
            against = reference_partitions or reference_partitions_of(context, key, reference_key, checked)
            expected = Expectations.learn(normalise(load_frame(context, reference_key, against)), learn)
            notes = {f"{prefix}/reference_rows": expected.rows}
        quality = examine(load_frame(context, key, checked), rules, expected)
        metadata = quality.to_metadata(prefix, SHOWN) | notes
        worst = [f.column for f in quality.findings if quality.frame.kinds.get(f.column) in ("number", "category")]
        if tool:
            place = {"folder": f"{key.to_user_string()}/{name}", "name": id}
            metadata |= _summary(context, tool, resource_key, quality.frame, worst, place)
        sample = quality.frame.sample(_MOST_DRAWN, 0).data
        metadata |= distributions(f"{prefix}/plot", {"current": sample}, worst)
        return judged(
            prefix,
            "; ".join([*quality.problems[:6], *([f"{len(quality.problems) - 6} more"] * (len(quality.problems) > 6))]),
            metadata,
            severity=severity,
            otherwise=f"{quality.rows} rows, no finding.",
        )

    return asset_checks(
        asset=key,
        tool=prefix,
        judges={name: (description or "Enough rows, none missing, malformed, out of range or repeated.", evaluate)},
        blocking=blocking,
        required_resource_keys=[resource_key] if tool else [],
        options=with_deps(check_options, {reference_key} - {key} if reference_key else set()),
    )


def _summary(
    context: dg.AssetCheckExecutionContext,
    tool: str,
    resource_key: str,
    frame: Frame,
    columns: Sequence[str],
    place: Mapping[str, str],
) -> dict[str, Any]:
    """The tool's report, or why there is none: it never costs the verdict."""
    summarises = capable_resource(context, resource_key, Summarises)
    report: list[ToolReport | None] = []

    def save() -> Any:
        report.append(summarises.summary(frame, columns, name=place["name"]))
        return report[0].save(**place, record={}) if report[0] else ""

    if frame.data.empty or not columns:
        return {}
    metadata = saved_report(tool, save)
    if report and (left_out := getattr(report[0], "left_out", "")):
        metadata[f"{tool}/report_note"] = left_out
    return metadata if not report or report[0] else {}
