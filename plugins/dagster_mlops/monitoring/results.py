"""The parts that results of all checks share: their outcome, the tool's report, and the check's other arguments."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.check_states import state_metadata
from dagster_mlops.core.metadata import shorten
from dagster_mlops.core.terminal import line
from dagster_mlops.provenance import mask_credentials

Severity = Literal["WARN", "ERROR"]
_LONG = 2_000  # characters of a description: data may have any names
SHOWN = 20  # per-column floats and table rows, worst first; a tool's report has more of them


def judged(
    tool: str, problem: str, metadata: Mapping[str, Any], *, severity: Severity, otherwise: str
) -> dg.AssetCheckResult:
    """The result of a check that has an answer: it fails with `problem`, or passes with the text `otherwise`."""
    return dg.AssetCheckResult(
        passed=not problem,
        severity=dg.AssetCheckSeverity(severity),
        description=shorten(line(problem or otherwise), _LONG),
        metadata={**metadata, **state_metadata(tool, "detected" if problem else "ok", problem[:1000])},
    )


def undecided(tool: str, why: str, metadata: Mapping[str, Any]) -> dg.AssetCheckResult:
    """The result of a check that cannot tell: it passes, says so, and counts as green nowhere."""
    return dg.AssetCheckResult(
        passed=True,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Not judged: {why}",
        metadata={**metadata, **state_metadata(tool, "undecided", why)},
    )


def evaluation_id(context: dg.AssetCheckExecutionContext) -> str:
    """The name of a check's evaluation: its run and, where there is one, its partition."""
    partition = f"-{','.join(context.partition_keys)}" if context.has_partition_key else ""
    return f"{context.run.run_id}{partition}"


def with_deps(options: Mapping[str, Any], keys: Collection[dg.AssetKey]) -> dict[str, Any]:
    """The user's options of a check, with more assets that it depends on."""
    return {**options, "additional_deps": [*sorted(keys), *options.get("additional_deps", ())]}


def saved_report(tool: str, save: Callable[..., Path], **options: Any) -> dict[str, Any]:
    """The path of the written report, or why it could not be written: a report never costs a verdict."""
    try:
        return {f"{tool}/report": dg.MetadataValue.path(str(save(**options)))}
    except Exception as error:  # noqa: BLE001 - see above
        return {f"{tool}/report": mask_credentials(f"Not written: {type(error).__name__}: {error}")}
