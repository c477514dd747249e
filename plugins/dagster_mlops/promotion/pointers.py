"""The aliases of a lifecycle, set to what the history says: after each promotion and each rollback, in their turn."""

from collections.abc import Mapping, Sequence

import dagster as dg

from dagster_mlops.core.model_versions import holder
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.approval import Approval, requests
from dagster_mlops.promotion.decisions import answered
from dagster_mlops.promotion.history.entry import PROMOTION, REQUEST
from dagster_mlops.promotion.history.envelope import may_say
from dagster_mlops.promotion.history.log import History, in_order, readable
from dagster_mlops.promotion.history.rollbacks import earlier_holder
from dagster_mlops.promotion.lifecycle import CANDIDATE, CHALLENGER, PREVIOUS, Lifecycle
from dagster_mlops.promotion.verdict import WAITS
from dagster_mlops.provenance import ModelVersion, mask_credentials
from dagster_mlops.tools import HoldsModels, KeepsHistory, SetsAliases

LIFECYCLE = "lifecycle"
"""Fact of an entry: the names of these aliases by role, so that a rollback, which has no definition, sets them too."""


def require_aliases(models: HoldsModels) -> None:
    """Refuse a registry in which these aliases cannot be.

    Raises:
        ModelVersionError: it cannot set and remove an alias, or has no history from which they follow.
    """
    if isinstance(models, SetsAliases) and isinstance(models, KeepsHistory):
        return
    raise ModelVersionError(
        f"the registry {models.tool!r} has no aliases that can be set and removed at will (in GTO, each stage is a tag "
        "for good). Leave out lifecycle=, or promote in a registry that has them, such as MLflow's."
    )


def show_candidate(models: HoldsModels, version: ModelVersion, alias: str, lifecycle: Lifecycle) -> None:
    """Set the alias of the version that is judged for `alias` from now on. What fails is logged, and stops nothing."""
    if lifecycle.candidate and alias not in version.aliases and isinstance(models, KeepsHistory):
        _set(models, version.name, lifecycle.candidate, version.version, in_order(models.history(version.name)))


def follow(
    models: HoldsModels,
    history: History,
    alias: str,
    names: Mapping[str, str],
    *,
    candidate: str = "",
    approval: Approval | None = None,
) -> None:
    """Set the aliases to what the history of `alias` says now. What fails is logged, and stops nothing.

    Args:
        models: The registry, in a turn of the caller.
        history: The history of the model, in agreement with its alias.
        alias: The promoted alias.
        names: The aliases by role.
        candidate: The version that a run has judged; empty without a run.
        approval: The approval that a promotion to the alias needs; None where the caller does not know it.
    """
    for role, name in names.items():
        try:
            version = _target(models, history, alias, role, name, candidate, approval)
        except Exception as error:  # noqa: BLE001 - whatever broke, it is a pointer, and the promotion is made
            _warn(history.model, name, error)
            continue
        if version is not None:
            _set(models, history.model, name, version, history.texts)


def recorded_names(history: History, alias: str) -> dict[str, str]:
    """The aliases by role that the last promotion, or request for one, has on record."""
    for entry in history.newest(alias):
        if entry.kind in (PROMOTION, REQUEST):
            names = entry.facts.get(LIFECYCLE)
            by_role = names.items() if isinstance(names, dict) else ()
            return {role: name for role, name in by_role if isinstance(name, str) and name != alias}
    return {}


def refuse_pointer(history: History, alias: str, version: str) -> None:
    """Refuse to promote to an alias that the lifecycle of another one has put on a version, without a gate.

    Raises:
        ModelVersionError: it is one.
    """
    roles, promoted = (CANDIDATE, CHALLENGER, PREVIOUS), set[str]()
    texts = {n: text for n, text in enumerate(history.texts) if any(may_say(text, role, alias) for role in roles)}
    for entry in reversed(readable(history.model, texts).values()):
        if entry.alias not in promoted and alias in recorded_names(history, entry.alias).values():
            raise ModelVersionError(
                f"the alias {alias!r} of {history.model!r} is on version {version} by the lifecycle of "
                f"{entry.alias!r}, and no gate has judged that version for it. Give one of the two another name, "
                "then remove this alias in the registry."
            )
        promoted.add(entry.alias)


def _target(
    models: HoldsModels, history: History, alias: str, role: str, name: str, candidate: str, approval: Approval | None
) -> str | None:
    """The version that a role is on; empty for none, and None where it stays as it is."""
    if role == CANDIDATE:
        current = holder(models, history.model, name)
        return None if candidate and current and current.version != candidate else ""  # another run judges that one
    current = holder(models, history.model, alias)
    version = current.version if current else ""
    if role == PREVIOUS:
        return earlier_holder(history, alias, version)
    entries = history.since_last_move(alias)
    open_requests = requests(entries, alias)
    if approval is None:
        return None if open_requests else ""
    for request in open_requests:
        try:
            waiting = models.version(history.model, request.after)
        except ModelVersionError:  # deleted
            continue
        if request is approval.open_request(entries, alias, version, waiting):
            row, *_ = answered(approval, history, waiting, request)
            if row.verdict == WAITS:
                return request.after
    return ""


def _set(models: HoldsModels, model: str, alias: str, version: str, texts: Sequence[str]) -> None:
    try:
        entries = readable(model, {n: text for n, text in enumerate(texts) if may_say(text, "alias", alias)})
        if any(entry.alias == alias and entry.is_move for entry in entries.values()):
            raise ModelVersionError("versions are promoted to it, and one name cannot be both")
        current = holder(models, model, alias)
        if isinstance(models, SetsAliases) and (current.version if current else "") != version:
            models.set_alias(model, alias, version)
    except Exception as error:  # noqa: BLE001 - it is a pointer
        _warn(model, alias, error)


def _warn(model: str, alias: str, error: Exception) -> None:
    dg.get_dagster_logger().warning(
        f"The alias {alias!r} of {model!r} was not set: {mask_credentials(str(error))[:300]}. The promoted alias is "
        "right; the next promotion or rollback sets this one."
    )
