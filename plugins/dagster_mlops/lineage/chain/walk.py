"""Traces a thing upstream to everything that it was made from, tool by tool."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import dagster as dg

from dagster_mlops.lineage.chain.sources import EventLog, Tools
from dagster_mlops.provenance import Accessible, Answer, PredictionBatch, Record, Ref, mask_credentials
from dagster_mlops.tools import Tool

Source = Literal["tool", "dagster", "carried", "nowhere"]
_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True)
class Link:
    """One thing in the chain, and what it was made from.

    `bucket` is the tool's own answer. `source` says where the `record` is from: the tool, Dagster's event log, or the
    facts that a record downstream carries; the chain continues below a link that its tool has lost.
    """

    ref: Ref
    bucket: str  # accessible, inaccessible, deleted, faulty or unknown
    reason: str = ""
    record: Record | None = None
    source: Source = "nowhere"
    upstream: tuple["Link", ...] = ()

    @property
    def title(self) -> str:
        """The name of the thing as a reader knows it."""
        return self.record.title() if self.record else self.ref.id

    @property
    def complete(self) -> bool:
        """True if every link is accessible."""
        return all(link.bucket == "accessible" for link in self.walk())

    def walk(self) -> Iterator["Link"]:
        """This link and everything upstream, each once, nearest first."""
        seen: set[Ref] = {self.ref}
        waiting: list[Link] = [self]
        for link in waiting:
            yield link
            for up in link.upstream:
                if up.ref not in seen:
                    seen.add(up.ref)
                    waiting.append(up)

    def find(self, role: type[_R]) -> list[_R]:
        """Every record of one class in the chain, nearest first."""
        return [link.record for link in self.walk() if isinstance(link.record, role)]

    def to_dict(self) -> dict[str, Any]:
        """The whole chain in plain JSON types: a list of links in which each names its upstream refs."""
        links = [{**vars(link), "upstream": [up.ref for up in link.upstream]} for link in self.walk()]
        return plain({"ref": self.ref, "complete": self.complete, "links": links})


def plain(value: Any) -> Any:
    """Plain JSON types of a record, of a result, and of what is in it."""
    if isinstance(value, Record | Ref):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return plain(vars(value)) if dataclasses.is_dataclass(value) else value


def trace(
    ref: Ref,
    *,
    tools: Mapping[str, Tool] | Tools | None = None,
    instance: dg.DagsterInstance | EventLog | None = None,
    timeout: float | None = None,
    allow: Iterable[str] = (),
) -> Link:
    """Everything that a thing was made from, back to the raw data and the commit.

    Each tool is asked once for each ref. If it has lost the record, or does not answer, the record comes from Dagster's
    event log, or from facts that a record downstream carries: a broken link does not end the chain.

        chain = trace(Ref("mlflow", "model_version", "delay/3", at=uri), instance=dg.DagsterInstance.get())
        [dataset.md5 for dataset in chain.find(Dataset)]

    Args:
        ref: The start.
        tools: Tools to ask, by name; default: every installed one. For many traces, give a `Tools` object.
        instance: Dagster instance whose event log fills the gaps; without one, only tools answer. For many traces,
            give an `EventLog`.
        timeout: Seconds after which a tool that does not answer counts as inaccessible; default: ten, besides the time
            that it takes to import the tool.
        allow: Further places at which tools may be asked, each with what lies below it. Others are that of `ref`, those
            at which the instance's runs have made something, and those in the environment. A thing elsewhere is
            inaccessible: records are data, which others may have written.
    """
    tools = tools if isinstance(tools, Tools) else Tools(tools, timeout, allow=allow)
    events = EventLog(instance) if isinstance(instance, dg.DagsterInstance) else instance
    tools.places.add(ref.at)
    if events:
        tools.places.trust(events)
    steps: dict[Ref, _Step] = {}
    waiting: deque[tuple[Ref, Record | None, float | None]] = deque([(ref, None, None)])
    while waiting:
        current, child, before = waiting.popleft()
        if current not in steps:
            step = steps[current] = _step(current, child, before, tools, events)
            waiting.extend((up, step.record, step.before) for up in step.upstream)
    return _linked(ref, steps)


@dataclass(frozen=True)
class _Step:
    """A link whose upstream is still refs."""

    answer: Answer
    source: Source
    record: Record | None
    upstream: tuple[Ref, ...]
    before: float | None  # upstream things existed at this time


def _step(ref: Ref, child: Record | None, before: float | None, tools: Tools, events: EventLog | None) -> _Step:
    entry = events.find(ref, before=before) if events and not ref.is_unknown else None
    # A batch of predictions has no tool beside Dagster, whose record is the thing.
    answer = Accessible(entry.record) if entry and ref.tool == PredictionBatch.tool else tools.ask(ref)
    if ref.is_unknown:
        return _Step(answer, "nowhere", None, (), before)
    if entry and not ref.at and not isinstance(answer, Accessible):
        answer = tools.ask(entry.record.ref)  # the event log knows where to look
    candidates: list[tuple[Source, Record | None]] = [
        ("tool", answer.record),
        ("dagster", entry.record if entry else None),
        ("carried", child.implies(ref) if child else None),
        ("nowhere", None),
    ]
    source, record = next(pair for pair in candidates if pair[1] or pair[0] == "nowhere")
    if events and events.unreadable and source in ("carried", "nowhere") and not isinstance(answer, Accessible):
        # Its record may be among those that cannot be read.
        count, first = len(events.unreadable), events.unreadable[0]
        answer = dataclasses.replace(
            answer, reason=f"{answer.reason} Dagster's event log has {count} record(s) that cannot be read: {first}"
        )
    # A promoted version names itself, which is not an edge.
    edges = next((edges for _, r in candidates if r and (edges := [up for up in r.upstream if up != ref])), [])
    edges += record.missing(edges) if record else []
    return _Step(answer, source, record, tuple(dict.fromkeys(edges)), entry.first_seen if entry else before)


def _linked(start: Ref, steps: Mapping[Ref, _Step]) -> Link:
    """The steps as links, upstream first, so that a thing that is reached in two ways is one object."""
    links: dict[Ref, Link] = {}
    path, waiting = dict.fromkeys([start]), [start]
    while waiting:
        ref = waiting[-1]
        path[ref] = None
        step = steps[ref]
        missing = next((up for up in step.upstream if up not in links and up not in path), None)
        if missing is not None:
            waiting.append(missing)
            continue
        upstream = tuple(links[up] if up in links else _cycle(up, path) for up in step.upstream)
        reason = mask_credentials(getattr(step.answer, "reason", ""))
        links[ref] = Link(ref, step.answer.bucket, reason, step.record, step.source, upstream)
        del path[waiting.pop()]
    return links[start]


def _cycle(ref: Ref, path: Mapping[Ref, None]) -> Link:
    names = [str(up) for up in path]
    circle = [*names[names.index(str(ref)) :], str(ref)]
    return Link(ref, "faulty", f"the records name each other as upstream: {' → '.join(circle)}.")
