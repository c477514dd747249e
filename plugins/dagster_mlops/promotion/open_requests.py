"""Promotions that wait for people: by their registries or, where one cannot be asked, by Dagster's event log."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import holder
from dagster_mlops.core.terminal import error_line
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.approval import (
    Approval,
    authors_of,
    command_for,
    decisions,
    is_about,
    new_notes,
    note_of,
    requests,
)
from dagster_mlops.promotion.history.entry import APPROVAL, REQUEST, Entry, made, read_entry
from dagster_mlops.promotion.history.envelope import PUBLIC_KEYS, trusted_keys
from dagster_mlops.promotion.history.log import keeper_of, readable
from dagster_mlops.promotion.sources import EVENT_LOG, Sources, promoters
from dagster_mlops.promotion.verdict import WAITS
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, answer_within

_UNVERIFIED = f"; signatures are not verified, because {PUBLIC_KEYS} is not set here"
_SECONDS = 10.0  # for the answer of a registry; importing MLflow takes some of them


@lazy_dataclass(frozen=True)
class OpenRequest:
    """A version that waits for an alias until people have decided.

    `people` is 0 and `ends` is empty if the request does not say. `verdict` is ``waits``, or ``holds`` or ``fails``
    where people have decided, and the next run of the promotion `asset` acts on it. `problem` says why the registry
    could not be asked: then all of this is as Dagster has it.
    """

    model: str
    version: str
    alias: str
    before: str
    since: str
    by: str
    why: str
    people: int
    approvals: tuple[str, ...]
    verdict: str
    state: str
    ends: str
    command: str
    asset: str
    source: str
    problem: str = ""


def open_requests(instance: dg.DagsterInstance, seconds: float = _SECONDS) -> list[OpenRequest]:
    """The versions that wait, by the latest materialization of each promotion asset; each registry has its `seconds`.

    Without one that waits, no registry is asked.
    """
    requests_by_place: dict[tuple[str, ...], OpenRequest] = {}
    for promoter in promoters(instance):
        if promoter.waits:
            sources = Sources(promoter.model, promoter.tool, promoter.place, instance, [promoter])
            for each in _of_model(sources, seconds):
                requests_by_place.setdefault((promoter.place, each.model, each.alias, each.version), each)
    return sorted(requests_by_place.values(), key=lambda each: (each.model, each.alias, each.since))


def _of_model(sources: Sources, seconds: float) -> list[OpenRequest]:
    def ask() -> list[OpenRequest]:
        with sources.models() as models:
            texts = keeper_of(models).history(sources.model)
            return [*_in_history(sources, sources.registry, texts, models)]

    try:
        answer = answer_within(seconds, ask, limit=seconds)
        problem = f"it did not answer within {seconds:g} s"
    except Exception as error:  # noqa: BLE001 - of any registry: Dagster has the request as well
        answer, problem = None, error_line(error)
    if answer is not None:
        return answer
    log = sources.event_log(sources.promoters[0].history)
    texts = {number: of_number[0] for number, of_number in log.texts.items()}
    problem = f"{sources.registry} cannot be asked: {problem}"
    return [replace(each, problem=problem) for each in _in_history(sources, EVENT_LOG, texts)]


def _in_history(
    sources: Sources, source: str, texts: Mapping[int, str], models: HoldsModels | None = None
) -> Iterator[OpenRequest]:
    entries, keys = [*readable(sources.model, texts).values()], trusted_keys()
    for alias in sorted({entry.alias for entry in entries if entry.kind == REQUEST}):
        of_alias = made(entry for entry in entries if entry.alias == alias)
        # Of each version the newest request, which comes first.
        for request in {each.after: each for each in reversed(requests(of_alias, alias))}.values():
            answers, unverified, authors = decisions(of_alias, request), "", [request.by]
            envelopes = {entry.index: read_entry(texts[entry.index])[1] for entry in answers}
            if keys:
                answers = [entry for entry in answers if envelopes[entry.index].is_signed(keys)]
            elif any(envelope.signatures for envelope in envelopes.values()):
                unverified = _UNVERIFIED
            if models:
                current = holder(models, request.model, alias)
                if (current.version if current else "") != request.before:
                    continue  # it was for another champion: the next run asks anew
                try:
                    version = models.version(request.model, request.after)
                except ModelVersionError:  # deleted
                    continue
                if not is_about(request, version):
                    continue
                if {each.alias for each in entries if (each.kind, each.after) == (REQUEST, request.after)} == {alias}:
                    answers += _from_notes(models, version, request, answers)
                if (approval := Approval.of(request)) and approval.separate_duties:
                    authors += authors_of(version)
            described = _described(request, answers, authors, sources, source)
            yield replace(described, state=f"{described.state}{unverified}")


def _described(
    request: Entry, answers: Sequence[Entry], authors: Sequence[str], sources: Sources, source: str
) -> OpenRequest:
    approval = Approval.of(request)  # one of an earlier version of this library does not say
    row = approval.judge(request, answers, authors) if approval else None
    command = command_for(request)
    counted = (approval or Approval()).counted(answers, authors).values()
    return OpenRequest(
        model=request.model,
        version=request.after,
        alias=request.alias,
        before=request.before,
        since=request.at,
        by=request.by,
        why=request.why,
        people=approval.people if approval else 0,
        approvals=tuple(entry.by for entry in counted if entry.kind == APPROVAL),
        verdict=row.verdict if row else WAITS,
        state=row.why.replace(f"; approve by `{command}`", "") if row else "",
        ends=approval.ends(request).isoformat(timespec="minutes") if approval else "",
        command=command,
        asset=sources.promoters[0].key.to_user_string(),
        source=source,
    )


def _from_notes(
    models: HoldsModels, version: ModelVersion, request: Entry, answers: Sequence[Entry]
) -> Iterator[Entry]:
    """The approvals that the next run of the promotion makes of notes."""
    for note in sorted(new_notes(models, version, request) - {str(entry.facts.get("note")) for entry in answers}):
        person, comment = note_of(note)
        if person:
            yield replace(request, kind=APPROVAL, by=person, why=comment, facts={"note": note})
