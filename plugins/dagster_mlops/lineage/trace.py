"""Walks from any thing upstream to everything it was made from, tool by tool."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

import dagster as dg

from dagster_mlops.errors import MissingExtraError
from dagster_mlops.lineage.carried import carried
from dagster_mlops.lineage.event_log import EventLog
from dagster_mlops.provenance import Accessible, Answer, Faulty, Inaccessible, Record, Ref, Resolver, mask_credentials

RESOLVERS = "dagster_mlops.resolvers"

Source = Literal["tool", "dagster", "carried", "nowhere"]
_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True)
class Link:
    """One thing in the chain, and what it was made from.

    `bucket` is what the tool itself says now. `source` says who gave the `record`: the tool, Dagster's event log, or
    the facts that the thing made from it carries; the chain goes on below a link that its tool has lost.
    """

    ref: Ref
    bucket: str  # accessible, inaccessible, deleted or faulty
    reason: str = ""
    record: Record | None = None
    source: Source = "nowhere"
    upstream: tuple["Link", ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every link, down to the last, is accessible."""
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

    def find(self, kind: type[_R]) -> list[_R]:
        """Every record of one kind in the chain, nearest first."""
        return [link.record for link in self.walk() if isinstance(link.record, kind)]

    def to_dict(self) -> dict[str, Any]:
        """The whole chain in plain JSON types: a list of links in which each names its upstream refs."""
        return {
            "ref": _ref_dict(self.ref),
            "complete": self.complete,
            "links": [
                {
                    "ref": _ref_dict(link.ref),
                    "bucket": link.bucket,
                    "reason": link.reason,
                    "source": link.source,
                    "record": link.record.to_dict() if link.record else None,
                    "upstream": [_ref_dict(up.ref) for up in link.upstream],
                }
                for link in self.walk()
            ],
        }


def trace(
    ref: Ref,
    *,
    resolvers: Mapping[str, Resolver] | None = None,
    instance: dg.DagsterInstance | None = None,
    timeout: float = 60.0,
) -> Link:
    """Everything that a thing was made from, back to the raw data and the commit.

    Each ref is asked of its tool once. Where the tool has lost the record, or cannot be asked, Dagster's event log
    gives it, and else what the thing above carries: a broken link never ends the chain, and never reads as "none".

        chain = trace(Ref("mlflow", "model_version", "delay/3", at=uri), instance=dg.DagsterInstance.get())
        [dataset.md5 for dataset in chain.find(Dataset)]

    Args:
        ref: where to start.
        resolvers: the tools to ask, by name, instead of every installed one (entry-point group
            ``dagster_mlops.resolvers``).
        instance: the Dagster instance whose event log fills the gaps; without one, tools alone answer.
        timeout: seconds after which a tool that does not answer counts as inaccessible.
    """
    tools = _Tools(resolvers, timeout)
    events = EventLog(instance) if instance else None
    steps: dict[Ref, _Step] = {}
    waiting: deque[tuple[Ref, Record | None, float | None]] = deque([(ref, None, None)])
    while waiting:
        asked, child, before = waiting.popleft()
        if asked not in steps:
            step = steps[asked] = _step(asked, child, before, tools, events)
            waiting.extend((up, step.record, step.before) for up in step.upstream)
    return _linked(ref, steps)


@dataclass(frozen=True)
class _Step:
    """One ref answered: a link whose upstream is still refs."""

    answer: Answer
    source: Source
    record: Record | None
    upstream: tuple[Ref, ...]
    before: float | None  # upstream things existed at this time


def _step(ref: Ref, child: Record | None, before: float | None, tools: "_Tools", events: EventLog | None) -> _Step:
    answer = tools.ask(ref)
    entry = events.find(ref, before=before) if events else None
    if entry and not ref.at and not isinstance(answer, Accessible):
        answer = tools.ask(entry.record.ref)  # only now is it known where to look
    known: list[tuple[Source, Record | None]] = [
        ("tool", answer.record),
        ("dagster", entry.record if entry else None),
        ("carried", carried(child, ref)),
        ("nowhere", None),
    ]
    source, record = next(pair for pair in known if pair[1] or pair[0] == "nowhere")
    # A promoted version, or a view with a memory, names itself: that is no edge.
    edges = next((edges for _, r in known if r and (edges := [up for up in r.upstream if up != ref])), [])
    if entry and entry.partitions > 1:
        # A tool holds one record of what is filled partition by partition; Dagster has one for each partition.
        edges += entry.record.upstream
    made = entry.made if entry and entry.partitions == 1 else before
    return _Step(answer, source, record, tuple(dict.fromkeys(edges)), made)


def _linked(start: Ref, steps: Mapping[Ref, _Step]) -> Link:
    """The steps as links, upstream first, so that a thing reached on two ways is one object."""
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


class _Tools:
    """Asks tools, and waits for none of them for ever."""

    def __init__(self, resolvers: Mapping[str, Resolver] | None, timeout: float) -> None:
        self._timeout = timeout
        self._installed = {} if resolvers is not None else {e.name: e for e in entry_points(group=RESOLVERS)}
        self._resolvers = dict(resolvers or {})
        self._broken: dict[str, Answer] = {}
        self._silent: set[tuple[str, str]] = set()

    def ask(self, ref: Ref) -> Answer:
        if ref.tool in self._broken:
            return self._broken[ref.tool]
        if ref.tool not in self._resolvers and ref.tool not in self._installed:
            known = ", ".join(sorted({*self._resolvers, *self._installed})) or "none"
            return Inaccessible(f"no resolver for {ref.tool!r} is installed (known: {known}).")
        if (ref.tool, ref.at) in self._silent:
            return Inaccessible(
                f"{ref.tool} at {ref.at or 'its default place'} did not answer before; not asked again."
            )
        answers: list[Answer] = []
        # A daemon thread, so that a tool that hangs for ever cannot keep the process from ending.
        thread = threading.Thread(target=lambda: answers.append(self._answer(ref)), daemon=True)
        thread.start()
        thread.join(self._timeout)
        if answers:
            return answers[0]
        self._silent.add((ref.tool, ref.at))
        return Inaccessible(f"{ref.tool} did not answer within {self._timeout:g} s (asked at {ref.at or '?'}).")

    def _answer(self, ref: Ref) -> Answer:
        try:
            if ref.tool not in self._resolvers:
                self._resolvers[ref.tool] = self._installed[ref.tool].load()()
            answer = self._resolvers[ref.tool].resolve(ref)
            return answer if isinstance(answer, Answer) else Faulty(f"the {ref.tool} resolver returned {answer!r}.")
        except MissingExtraError as error:
            self._broken[ref.tool] = Inaccessible(str(error))
            return self._broken[ref.tool]
        except OSError as error:
            return Inaccessible(f"{ref.tool} cannot be reached: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever a tool throws is a finding about this link, never the end
            return Faulty(f"the {ref.tool} resolver failed: {type(error).__name__}: {error}")


def _ref_dict(ref: Ref) -> dict[str, str]:
    return {"tool": ref.tool, "kind": ref.kind, "id": ref.id, "at": ref.at}
