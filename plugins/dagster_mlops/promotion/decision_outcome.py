"""A decision about a version that waits, as commands make it: its entry in both places, and the effect."""

import dataclasses
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.terminal import error_line
from dagster_mlops.promotion.approval import Approval
from dagster_mlops.promotion.decisions import answered, decide, request_of
from dagster_mlops.promotion.history.entry import Entry
from dagster_mlops.promotion.history.event_log import identity, mirror_now
from dagster_mlops.promotion.history.log import History
from dagster_mlops.promotion.sources import Sources
from dagster_mlops.promotion.verdict import Row
from dagster_mlops.provenance import mask_credentials


@lazy_dataclass(frozen=True)
class Decision:
    """A decision that is on record in a registry, and what came of it: the row of its request.

    `row` is None where the request does not say what it needs. `counts` is false for a person who may not decide about
    this version. `problem` says what could not be done after the decision was on record.
    """

    entry: Entry
    registry: str
    row: Row | None = None
    counts: bool = True
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = ("model", "alias", "kind", "after", "by", "why", "at", "index")
        facts = {{"after": "version"}.get(name, name): getattr(self.entry, name) for name in names}
        state = {"verdict": self.row.verdict, "state": self.row.why} if self.row else {"verdict": "", "state": ""}
        return {**facts, "registry": self.registry, "counts": self.counts, **state, "problem": self.problem}


def decide_at(sources: Sources, kind: str, *, by: str, why: str, version: str, alias: str) -> Decision:
    """Write a decision as :func:`decide` does, bring it to Dagster's event log, and see what came of it.

    Raises:
        DagsterMlopsError: nothing was written.
    """
    with sources.models() as models:
        entry, history = decide(models, sources.model, kind, by=by, why=why, version=version, alias=alias)
        decision = Decision(entry, sources.registry)
        try:
            row, counts = _outcome(history, entry)
            decision = dataclasses.replace(decision, row=row, counts=counts)
        except Exception as error:  # noqa: BLE001 - of any registry, after the decision is on record
            return dataclasses.replace(decision, problem=f"what it changes is unknown: {error_line(error)}")
    try:
        instance = sources.instance
        for promoter in sources.here(identity(history.texts[0])) if instance else ():
            assert instance  # it has named the promoters
            mirror_now(instance, promoter.key, promoter.tool, history, mask_credentials(sources.place))
    except Exception as error:  # noqa: BLE001 - of Dagster's database
        return dataclasses.replace(decision, problem=f"Dagster's event log does not have it: {error_line(error)}")
    return decision


def _outcome(history: History, decision: Entry) -> tuple[Row | None, bool]:
    """The row of the request that a decision is about, after it, and true if the decision counts.

    Without a row, the request does not say what it needs.
    """
    request = request_of(history, decision)
    approval = Approval.of(request)
    if approval is None:
        return None, True
    row, _, counted = answered(approval, history, history.registry.version(history.model, decision.after), request)
    return row, decision in counted
