"""Asks tools about refs, each within a time limit."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from dagster_mlops.errors import MissingExtraError
from dagster_mlops.provenance import Accessible, Answer, Faulty, Inaccessible, Record, Ref
from dagster_mlops.tools import Tool, answer_within, installed_tools, tool_for

_C = TypeVar("_C")
_LONGEST = 2_000  # characters of a reason


class Tools:
    """The installed tools, or those given by name; one that did not answer in time is not asked again.

    >>> Tools({}).ask(Ref("dvc", "dataset", "raw.parquet@9f")).bucket
    'inaccessible'
    """

    def __init__(self, tools: Mapping[str, Tool] | None = None, timeout: float = 60.0) -> None:
        self._tools = installed_tools() if tools is None else tools
        self._timeout = timeout
        self._missing: dict[str, Answer] = {}
        self._silent: set[tuple[str, str]] = set()

    @property
    def names(self) -> list[str]:
        """The tools that can be asked."""
        return sorted(self._tools)

    def ask(self, ref: Ref) -> Answer:
        """The tool's answer; also of a tool that raises, hangs or is not installed."""
        if ref.tool in self._missing:
            return self._missing[ref.tool]
        if ref.tool not in self._tools:
            return Inaccessible(f"No tool {ref.tool!r} is installed here; known: {', '.join(self.names) or 'none'}.")
        if (ref.tool, ref.at) in self._silent:
            return Inaccessible(f"{ref.tool} did not answer before (asked at {ref.at or '?'}); not asked again.")
        answer = answer_within(self._timeout, lambda: self._answer(ref))
        if answer is None:
            self._silent.add((ref.tool, ref.at))
            return Inaccessible(f"{ref.tool} did not answer within {self._timeout:g} s (asked at {ref.at or '?'}).")
        return answer

    def tool_for(self, ref: Ref, capability: type[_C]) -> _C:
        """The tool of `ref`, if it has a capability; see :func:`dagster_mlops.tools.tool_for`.

        Raises:
            ToolError: The tool is not installed, cannot be loaded, or lacks the capability.
        """
        return tool_for(ref.tool, capability, self._tools)

    def has(self, ref: Ref, capability: type) -> bool:
        """True if the tool of `ref` is here and has a capability."""
        return ref.tool in self._tools and isinstance(self._tools[ref.tool], capability)

    def _answer(self, ref: Ref) -> Answer:
        try:
            return _checked(ref, self._tools[ref.tool].resolve(ref))
        except MissingExtraError as error:
            self._missing[ref.tool] = Inaccessible(str(error))
            return self._missing[ref.tool]
        except OSError as error:
            return Inaccessible(f"{ref.tool} cannot be reached: {type(error).__name__}: {error}")
        except BaseException as error:  # noqa: BLE001 - whatever a tool throws in its thread is a finding about this link, never the end
            return Faulty(f"The tool {ref.tool} failed: {_said(error)}")


def _checked(ref: Ref, answer: object) -> Answer:
    """An answer, if it is one about `ref`: a tool of a third party may return anything."""
    if not isinstance(answer, Answer):
        return Faulty(f"The tool {ref.tool} returned {_short(repr(answer))}, and not an Answer.")
    record, reason = answer.record, getattr(answer, "reason", "")
    if (record is not None and not isinstance(record, Record)) or not isinstance(reason, str):
        return Faulty(f"The tool {ref.tool} returned a malformed answer: {_short(repr(answer))}.")
    if record is not None and (record.ref.tool, record.ref.role) != (ref.tool, ref.role):
        return Faulty(f"The tool {ref.tool} was asked for {ref} and answered with the record of {record.ref}.")
    return answer if isinstance(answer, Accessible) else dataclasses.replace(answer, reason=_short(reason))


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {_short(str(error))}"
    except Exception:  # noqa: BLE001 - an exception that cannot even be shown
        return type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"
