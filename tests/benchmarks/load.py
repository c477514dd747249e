"""Load for a server: a fixed number of clients that each send their next request when the last one is answered."""

import argparse
import asyncio
import json
import time
from statistics import quantiles
from urllib.parse import urlsplit


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, until: float, done: asyncio.Future[None], latencies: list[float]) -> None:
        self._request, self._until, self._done, self._latencies = request, until, done, latencies
        self._buffer, self._wanted, self.failures = b"", -1, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._start = time.perf_counter()
        self._transport.write(self._request)  # pyright: ignore[reportAttributeAccessIssue]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._wanted < 0:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self._wanted, self._buffer = int(length.split(b":")[1]), rest
            self.failures += b" 200 " not in head[:16]
        if len(self._buffer) < self._wanted:
            return
        now = time.perf_counter()
        self._latencies.append(now - self._start)
        self._buffer, self._wanted = b"", -1
        if now < self._until:
            self._send()
        elif not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError())


async def load(url: str, body: bytes, *, clients: int, seconds: float) -> dict[str, float]:
    """Requests per second, latencies in milliseconds and the number of answers that were not 200."""
    place, loop = urlsplit(url), asyncio.get_running_loop()
    request = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    latencies: list[float] = []
    start = time.perf_counter()
    done = [loop.create_future() for _ in range(clients)]
    made = [
        await loop.create_connection(
            lambda future=future: _Client(request, start + seconds, future, latencies),
            str(place.hostname),
            int(place.port or 80),
        )
        for future in done
    ]
    await asyncio.gather(*done)
    elapsed = time.perf_counter() - start
    cuts = quantiles(latencies, n=100)
    return {
        "requests": len(latencies),
        "requests_per_second": len(latencies) / elapsed,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "failures": sum(client.failures for _, client in made),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("body")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    with open(options.body, "rb") as file:
        found = asyncio.run(load(options.url, file.read(), clients=options.clients, seconds=options.seconds))
    print(json.dumps(found))
