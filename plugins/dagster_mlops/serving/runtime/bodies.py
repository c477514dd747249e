"""The bodies of requests, of which a worker holds so many bytes at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .limits import Limits
from .refusals import Gone, Refusal

LARGE = 2**18
"""Bytes of a body that would keep other requests waiting while it is parsed."""


class Bodies:
    """Reads bodies, and counts their bytes until they are answered."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._bytes = limits, 0

    def release(self, body: bytes) -> None:
        """Count a body no more."""
        self._bytes -= len(body)

    async def read(self, sent: dict[bytes, bytes], receive: Callable[[], Awaitable[Any]]) -> bytes:
        """The body of a request with the headers `sent`, which counts until :meth:`release`.

        Raises:
            Refusal: it is too large or too slow, or there are too many large ones.
            Gone: the client has closed the connection.
        """
        limits, parts, size = self._limits, [], 0
        too_large = Refusal(413, f"the body has more than {limits.body_bytes:,} bytes")
        length = sent.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limits.body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(limits.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    size += len(part)
                    self._bytes += len(part)
                    parts.append(part)
                    if size > limits.body_bytes:
                        raise too_large
                    if size > LARGE and self._bytes > limits.held_bytes:
                        raise Refusal(429, "too many large requests are being answered; try again")
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except BaseException as error:
            self._bytes -= size
            if isinstance(error, TimeoutError):
                raise Refusal(408, f"the body took longer than {limits.body_timeout:g} s") from None
            raise
