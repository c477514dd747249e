"""The HTTP face of a model: an ASGI app whose every refusal is a clear answer of 4xx."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from .attempts import NUMBER, TOKEN, Attempts
from .bodies import LARGE, Bodies
from .limits import Limits
from .log.predictions import PredictionLog, Rows
from .lookup import EntityError, Lookup, Lookups
from .metrics import metrics_text
from .openapi import openapi
from .refusals import Gone, Refusal, refusal_of
from .requests import ARROW, JSON, Request, RequestReader, checked_id, ids_of_rows
from .scorer import Scorer
from .scoring_thread import Job, ScoringThread
from .trace_context import trace_id_of

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

_Scope: TypeAlias = dict[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[Any]]
_Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
_logger = logging.getLogger("bentoml.dagster_mlops")
_encode = msgspec.json.Encoder().encode


class PredictionApp:
    """``POST /predict``, ``GET /openapi.json`` and ``GET /metrics``; anything else is 404.

    Until :meth:`serve` was called it answers 503.
    """

    observe: Callable[[int, float, int], None] = staticmethod(lambda *_: None)
    """Called with the status, the seconds and the number of rows of each request to ``/predict``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting = 0
        self._bodies = Bodies(limits)
        self._log: PredictionLog | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._reading = asyncio.Lock()
        self._reader: RequestReader | None = None

    def serve(
        self,
        model: "PyFuncModel",
        *,
        name: str,
        deployment: str,
        log: PredictionLog | None,
        mirrored_log: Callable[[], PredictionLog | None] = lambda: None,
        probe: str = "",
        examples: Sequence[Any] = (),
        lookup: Lookup | None = None,
        attempts: Attempts | None = None,
    ) -> Scorer:
        """Answer with the predictions of a model, which is warm when this returns.

        Args:
            name: Of the model in answers.
            mirrored_log: Makes the log of mirrored requests, when the first one comes.
            probe: The value of ``X-Probe`` that keeps a request out of the log, and of ``X-Mirrored`` that puts it into
                the log of mirrored requests; none does if it is empty.
            examples: Rows of features, to warm the model and choose how it is asked; see :class:`Scorer`.
            lookup: A source of features for requests that name entities.
            attempts: What other processes of the deployment have begun: that is not scored again when it is sent again.

        Raises:
            ValueError: the model has no features of its own names, or does not take the examples.
        """
        self._scorer = Scorer(model, examples)
        self._log, self._mirrored_log, self._probe = log, cache(mirrored_log), probe.encode()
        self._attempts = attempts
        self._facts = {"model": name, "deployment": deployment}
        self._headers = [(b"content-type", JSON.encode()), (b"x-deployment", deployment.encode())]
        params = model.metadata.get_params_schema()
        score, joins, threads = self._scorer.score, self._scorer.joins, self._limits.threads
        self._scoring = ScoringThread(score, self._write, joins=joins, threads=threads)
        keys = lookup.keys() if lookup else None
        self._lookups = Lookups(lookup, self._scorer.features) if lookup else None
        most = {"most_rows": self._limits.rows, "most_bytes": self._limits.body_bytes}
        reader = RequestReader(self._scorer.features, params, keys=keys, **most)
        self._openapi = _encode(openapi(name, reader.kind))
        self._reader = reader  # last: from here on it answers
        return self._scorer

    def longest_call(self) -> tuple[float, list[str]]:
        """Seconds that the oldest unfinished call of the model has lasted, and the first request id of each job."""
        seconds, jobs = self._scoring.longest_call()
        return seconds, [_first_id(job.facts) for job in jobs]

    def is_ready(self) -> bool:
        """True while a model is loaded that returns: no call of it lasts longer than a request may."""
        return self._reader is not None and self.longest_call()[0] <= self._limits.timeout

    def before(self, app: Any) -> Any:
        """An ASGI app that answers requests for predictions as this one does, and all others as `app`."""

        async def answer(scope: _Scope, receive: _Receive, send: _Send) -> None:
            await (self if scope.get("path") == "/predict" else app)(scope, receive, send)

        return answer

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """One request; see https://asgi.readthedocs.io/en/latest/specs/www.html."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return
        start, path, method = time.perf_counter(), scope["path"], scope["method"]
        headers: list[tuple[bytes, bytes]] = []
        status, body, request = 200, b"", None
        sent: dict[bytes, bytes] = {}
        try:
            if path == "/openapi.json" and method in ("GET", "HEAD") and self._reader:
                body, headers = self._openapi, self._headers
            elif path == "/metrics" and method == "GET" and self._reader:
                body, headers = metrics_text(), [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
            elif path != "/predict":
                raise Refusal(404, "not found; send predictions to POST /predict")
            elif method != "POST":
                headers = [(b"allow", b"POST")]
                raise Refusal(405, "send predictions with POST")
            elif self._reader is None:
                raise Refusal(503, "no model is loaded yet")
            else:
                sent = {name: value for name, value in scope["headers"] if name in _OF_INTEREST}
                headers = list(self._headers)
                request_id = self._request_id(sent)
                headers.append((b"x-request-id", request_id.encode()))
                request, answer = await self._predict(sent, request_id, receive, start)
                body = _encode(answer)
        except Refusal as refusal:
            status = refusal.status
            body = _encode({"error": str(refusal)})
            headers = headers or [(b"content-type", JSON.encode())]
            if status in (408, 413):  # the rest of the body is not read
                headers = [*headers, (b"connection", b"close")]
        except Gone:
            return
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if method != "HEAD" else b""})
        if path == "/predict":
            self.observe(status, time.perf_counter() - start, len(request.values) if request else 0)
            if status >= 400 and self._log:
                self._count_failure(status, sent, self._log)

    def _count_failure(self, status: int, sent: dict[bytes, bytes], log: PredictionLog) -> None:
        """Count a request without predictions in the log; the counts of a second are one line."""
        if self._is_marked(sent, b"x-probe") or self._is_marked(sent, b"x-mirrored"):
            return
        log.failed.count(status)
        if self._counting is None:
            self._counting = asyncio.get_running_loop().call_later(1, self._write_failures, log)

    def _write_failures(self, log: PredictionLog) -> None:
        self._counting = None
        log.failed.write_down()

    def _request_id(self, sent: dict[bytes, bytes]) -> str:
        try:
            return checked_id(sent.get(b"x-request-id", b"").decode("latin-1"))
        except ValueError as error:
            raise Refusal(400, error) from None

    async def _predict(
        self, sent: dict[bytes, bytes], request_id: str, receive: _Receive, start: float
    ) -> tuple[Request, dict[str, Any]]:
        kind = sent.get(b"content-type", JSON.encode()).split(b";")[0].strip().lower().decode("latin-1")
        if kind not in (JSON, ARROW):
            raise Refusal(415, f"the body must be {JSON} or {ARROW}")
        if b"content-encoding" in sent:
            raise Refusal(415, "the body must not be compressed")
        body = await self._bodies.read(sent, receive)
        try:
            return await self._answer_to(body, kind, sent, request_id, start)
        finally:
            self._bodies.release(body)

    async def _answer_to(
        self, body: bytes, kind: str, sent: dict[bytes, bytes], request_id: str, start: float
    ) -> tuple[Request, dict[str, Any]]:
        assert self._reader is not None
        read = self._reader.json if kind == JSON else self._reader.arrow
        try:
            if len(body) > LARGE or kind == ARROW:
                # One at a time: they would not be read faster together, and take much memory meanwhile.
                async with self._reading:
                    request = await asyncio.to_thread(read, body)
            else:
                request = read(body)
            ids = ids_of_rows(request_id, request.entities or request.values, request.ids)
        except ValueError as error:
            raise Refusal(400, error) from None
        end = asyncio.get_running_loop().time() + self._limits.timeout
        if request.entities:
            request = await self._looked_up(request, request.entities, end)
        if self._attempts and not self._attempts.begin(sent):
            raise Refusal(503, "the server that had this request has ended, and may have scored it")
        trace = trace_id_of(sent.get(b"traceparent", b"").decode("latin-1"))
        mirrored = self._is_marked(sent, b"x-mirrored")
        row = _Row(ids, request.inputs, request.params, trace, start, mirrored)
        job = await self._scored(request, None if self._is_marked(sent, b"x-probe") else row, end)
        return request, {"request_id": request_id, "ids": ids, "predictions": job.outputs, **self._facts}

    def _is_marked(self, sent: dict[bytes, bytes], header: bytes) -> bool:
        return bool(self._probe) and secrets.compare_digest(sent.get(header, b""), self._probe)

    async def _looked_up(self, request: Request, entities: list[dict[str, Any]], end: float) -> Request:
        assert self._lookups is not None
        if self._waiting >= self._limits.waiting:
            raise Refusal(429, "too many requests wait for the feature store; try again")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(end):
                values, inputs = await asyncio.wrap_future(self._lookups.submit(entities))
        except TimeoutError:
            text = f"the feature store did not answer within {self._limits.timeout:g} s; nothing was logged"
            raise Refusal(504, text) from None
        except EntityError as error:
            raise Refusal(422, error) from None
        except Exception:
            _logger.exception("the feature store does not answer")
            raise Refusal(503, "the feature store does not answer; nothing was logged") from None
        finally:
            self._waiting -= 1
        return replace(request, values=values, inputs=inputs)

    async def _scored(self, request: Request, facts: "_Row | None", end: float) -> Job:
        if self._waiting >= self._limits.waiting:
            raise Refusal(429, "too many requests wait for the model; try again")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not answer.done():
                answer.set_result(None)

        def expire() -> None:
            if job.give_up():
                settle()

        job = Job(request.values, lambda _: loop.call_soon_threadsafe(settle), request.params, facts)
        timer = loop.call_at(end, expire)
        self._waiting += 1
        try:
            self._scoring.submit(job)
            await answer
        finally:
            self._waiting -= 1
            timer.cancel()
        if job.give_up():
            raise Refusal(504, f"the model did not answer within {self._limits.timeout:g} s; nothing was logged")
        if job.error is None:
            return job
        raise refusal_of(job.error, _first_id(facts))

    def _write(self, jobs: list[Job]) -> None:
        """Log what was scored, before it is answered."""
        for mirrored in (False, True):
            logged = [job for job in jobs if job.facts and job.facts.mirrored == mirrored]
            if logged and (log := self._mirrored_log() if mirrored else self._log):
                log.write_all([job.facts.rows(job.outputs) for job in logged])


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[str]
    inputs: list[dict[str, Any]]
    params: dict[str, Any] | None
    trace_id: str
    start: float
    mirrored: bool

    def rows(self, outputs: list[Any]) -> Rows:
        seconds = time.perf_counter() - self.start
        return Rows(self.inputs, outputs, self.ids, self.trace_id, seconds, self.params)


_OF_INTEREST = frozenset(
    (
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"x-request-id",
        b"x-probe",
        b"x-mirrored",
        b"traceparent",
        TOKEN,
        NUMBER,
    )
)


def _first_id(facts: "_Row | None") -> str:
    return facts.ids[0] if facts else "a probe"
