"""A request to an app without a server."""

from collections.abc import Sequence
from typing import Any

_JSON = ((b"content-type", b"application/json"),)


async def answer(app: Any, body: bytes, headers: Sequence[tuple[bytes, bytes]] = _JSON) -> tuple[int, bytes]:
    """The status and the body with which an app answers a request for predictions."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await app({"type": "http", "path": "/predict", "method": "POST", "headers": list(headers)}, receive, send)
    return messages[0]["status"], messages[1]["body"]
