"""Health of a feature server: it answers in time, with the requested features."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.resources import note_credentials
from dagster_mlops.errors import FeatureError
from dagster_mlops.provenance import mask_credentials
from dagster_mlops.provenance.credentials import remember_credentials


def feature_server_health_check(
    *,
    asset: AssetLike,
    url: str,
    feature_service: str,
    entities: Mapping[str, Sequence[Any]],
    full_feature_names: bool = False,
    token: str | None = None,
    timeout: float = 5.0,
    max_latency: timedelta | None = None,
    min_present: float = 0.0,
    name: str = "feature_server_health",
    blocking: bool = False,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """A check that the feature server at `url` (``feast serve``) is up and serves a feature service.

    It requests ``/health``, then reads the features of `entities` as an application does. Records ``feast/health_ms``,
    ``feast/read_ms`` and ``feast/present_share``, the share of values that are not missing.

        feature_server_health_check(
            asset="origin_weather", url="http://features:6566", feature_service="arrival_delay",
            entities={"origin": ["EWR", "JFK"]}, max_latency=timedelta(milliseconds=50),
        )

    Args:
        url: Address of the server, or a ``dg.EnvVar`` with it; a password in it is never shown.
        entities: Join keys and request data by name, each with one value per row.
        full_feature_names: Name features ``view__feature``, for a service with two features of one name.
        token: Bearer token, as ``dg.EnvVar``.
        timeout: Seconds that each of the two responses may take as a whole.
        max_latency: Duration of a read above which the check fails with severity WARN.
        min_present: Minimum share of values that are not missing, 0 to 1.
        check_options: Further arguments of :func:`dagster.asset_check`.
    """

    for argument, value in {"url": url, "token": token}.items():
        note_credentials("feature_server_health_check", argument, value)

    def judge(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        address, secret = (v.get_value() if isinstance(v, dg.EnvVar) else v for v in (url, token))
        remember_credentials({"url": address, "token": secret})
        if not address:
            raise FeatureError(f"the environment variable {url} with the feature server's address is not set.")
        server = _Server(address.rstrip("/"), secret, timeout)
        _, health_ms = server.ask("/health")
        question = {
            "feature_service": feature_service,
            "entities": {key: list(values) for key, values in entities.items()},
            "full_feature_names": full_feature_names,
        }
        answer, read_ms = server.ask("/get-online-features", question)
        present = _present_share(answer, server.public_address, set(entities))
        slow = max_latency is not None and read_ms > max_latency.total_seconds() * 1000
        few = present < min_present
        description = f"{server.public_address} served {feature_service!r} in {read_ms:.0f} ms"
        if few:
            description += (
                f", but only {present:.0%} of the sampled values are there, and at least {min_present:.0%} should "
                "be. Materialize its feature views, or check that the server reads the same online store"
            ).replace("%", " %")
        if slow and max_latency:
            description += f", more than the {max_latency.total_seconds() * 1000:.0f} ms allowed"
        return dg.AssetCheckResult(
            passed=not few and not slow,
            severity=dg.AssetCheckSeverity.ERROR if few else dg.AssetCheckSeverity.WARN,
            description=description,
            metadata={"feast/health_ms": health_ms, "feast/read_ms": read_ms, "feast/present_share": present},
        )

    return asset_checks(
        asset=asset_key(asset),
        tool="feast",
        judges={name: (f"The feature server serves `{feature_service}`.", judge)},
        blocking=blocking,
        options=check_options,
    )


class _Server:
    """A feature server; `public_address` is its address without secrets."""

    def __init__(self, address: str, token: str | None, timeout: float):
        parts = urlsplit(address)
        account, _, host = parts.netloc.rpartition("@")
        self.public_address, self.address = mask_credentials(address), parts._replace(netloc=host).geturl()
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        elif account:
            self.headers["Authorization"] = f"Basic {base64.b64encode(unquote(account).encode()).decode()}"

    def ask(self, path: str, question: dict[str, Any] | None = None) -> tuple[bytes, float]:
        """The response and the milliseconds that it took; a FeatureError if it fails or exceeds the timeout."""
        body = None if question is None else json.dumps(question, default=str).encode()
        start, received = time.monotonic(), bytearray()
        try:
            with urlopen(Request(self.address + path, body, self.headers), timeout=self.timeout) as response:
                # urlopen's timeout counts for each read: a server that sends a byte now and then would never reach it.
                while part := response.read1(65536):
                    received += part
                    if time.monotonic() - start > self.timeout:
                        raise TimeoutError
            return bytes(received), (time.monotonic() - start) * 1000
        except HTTPError as error:
            with error:
                message = error.read(500).decode(errors="replace")
            problem = f"answered {error.code}: {message}. See the log of the feature server."
        except OSError as error:
            reason = getattr(error, "reason", error)
            problem = f"cannot be reached: {reason}. Start `feast serve` there, or fix the address."
            if isinstance(reason, TimeoutError):
                problem = (
                    f"did not answer within {self.timeout} s. Restart the feature server, or allow more with timeout=."
                )
        raise FeatureError(f"{self.public_address}{path} {problem}")


def _present_share(answer: bytes, address: str, keys: set[str]) -> float:
    """The share of values in a response of Feast's server that are not missing, without the columns `keys`."""
    try:
        response = json.loads(answer)
        names, results = response["metadata"]["feature_names"], response["results"]
        columns = [result for name, result in zip(names, results, strict=True) if name not in keys]
        statuses = [status for column in columns for status in column["statuses"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{address}/get-online-features answered without features: {answer[:200]!r}. "
            "Is it the address of `feast serve`?"
        ) from error
    return statuses.count("PRESENT") / len(statuses) if statuses else 0.0
