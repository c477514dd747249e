"""Asset checks that always leave an evaluation: one that crashes has failed, and says why."""

import functools
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import asset_deps
from dagster_mlops.core.options import known_options, with_signature
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.provenance import mask_credentials

_SPEC_OPTIONS = ("additional_deps", "metadata", "automation_condition", "partitions_def")
_TRACEBACK = 6000  # characters of its end that the metadata keeps


def asset_checks(
    *,
    asset: dg.AssetKey,
    tool: str,
    judges: Mapping[str, tuple[str, Callable[[Any], dg.AssetCheckResult]]],
    evidence: Callable[[dg.AssetCheckExecutionContext], Any] = lambda context: context,
    blocking: bool,
    name: str | None = None,
    required_resource_keys: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> dg.AssetChecksDefinition:
    """Checks of one asset that run in one step. Each that is selected leaves an evaluation, whatever crashes.

    Args:
        asset: Asset that is checked.
        tool: First part of the names of metadata: ``<tool>/seconds`` and, after a crash, ``<tool>/error``.
        judges: Description and judge of each check, by name.
        evidence: Function whose result, computed once for all checks, the judges get; by default it is the context.
        blocking: Whether a failure with severity ERROR stops downstream assets of the same run.
        name: Name of the step.
        required_resource_keys: Resources that `evidence` uses.
        options: Whatever else :func:`dagster.asset_check` takes.
    """
    for_step = known_options(options or {}, dg.multi_asset_check, dg.AssetCheckSpec)
    for_specs = {option: for_step.pop(option) for option in _SPEC_OPTIONS if option in for_step}
    for_specs["additional_deps"] = asset_deps(for_specs.get("additional_deps", ()))
    specs = [
        dg.AssetCheckSpec(check, asset=asset, blocking=blocking, description=description, **for_specs)
        for check, (description, _) in judges.items()
    ]
    step = re.sub(r"\W", "_", name or "_".join([*asset.path, *judges]))
    required = {*required_resource_keys, *for_step.pop("required_resource_keys", ())}

    @dg.multi_asset_check(
        **{"compute_kind": tool, **for_step}, name=step, specs=specs, can_subset=True, required_resource_keys=required
    )
    @with_signature
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        @functools.cache
        def gathered() -> tuple[Any, Exception | None]:
            try:
                return evidence(context), None
            except Exception as error:  # noqa: BLE001 - each selected check repeats it
                return None, error

        def judged(judge: Callable[[Any], dg.AssetCheckResult]) -> dg.AssetCheckResult:
            facts, crash = gathered()
            if crash:
                raise crash
            return judge(facts)

        for spec in specs:
            if spec.key in context.selected_asset_check_keys:
                _, judge = judges[spec.name]
                result = never_missing(lambda judge=judge: judged(judge), tool=tool, log=context.log.error)
                yield result._replace(check_name=spec.name, asset_key=asset)

    return check


def never_missing(
    judge: Callable[[], dg.AssetCheckResult], *, tool: str, log: Callable[[str], None] | None = None
) -> dg.AssetCheckResult:
    """The result of a check's function, or a failed one with severity ERROR where it crashes.

    A result that is merely missing would block nothing. Interrupts are no crash and pass through.

    >>> never_missing(lambda: 1 / 0, tool="dvc").description
    'The check crashed: ZeroDivisionError: division by zero'
    """
    started = time.monotonic()
    try:
        result = judge()
    except Exception as error:  # noqa: BLE001 - whatever broke, the gate does not hold
        trace = mask_credentials("".join(traceback.format_exception(error)))
        if log is not None:
            log(f"The check crashed:\n{trace}")
        crash = "" if isinstance(error, DagsterMlopsError) else f"The check crashed: {type(error).__name__}: "
        result = dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR,
            description=mask_credentials(f"{crash}{error}"),
            metadata={f"{tool}/error": trace[-_TRACEBACK:]},
        )
    return result._replace(metadata={**result.metadata, f"{tool}/seconds": round(time.monotonic() - started, 3)})
