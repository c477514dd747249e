"""The trace that a request belongs to, from the header ``traceparent`` of W3C Trace Context."""

import re

_HEADER = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""https://www.w3.org/TR/trace-context/#traceparent-header; a later version than 00 may have more at its end."""


def trace_id_of(traceparent: str | None) -> str:
    """The id of the trace; empty where a client sends none, or one that is not valid.

    >>> trace_id_of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    match = _HEADER.fullmatch(traceparent or "")
    return match[1] if match else ""
