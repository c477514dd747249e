"""Rules of a prediction log: private features, a share of all rows, and the answer when the disk refuses a row."""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from dagster_mlops.serving.runtime.log.row_json import encode

RULES = "DAGSTER_MLOPS_PREDICTION_LOG_RULES"
KEY = "DAGSTER_MLOPS_PREDICTION_LOG_KEY"
_LENGTH = 32  # hexadecimal digits: 128 bits, so that no two customers share one


class LogRules(NamedTuple):
    """Rules of a prediction log. What they leave out was never on the disk.

    >>> LogRules(private={"name": "drop"}).without_private({"name": "Ada", "hour": 7})
    {'hour': 7}

    Args:
        private: Features that are not logged as they are: ``drop`` leaves one out, ``hash`` logs a keyed hash (HMAC
            with SHA-256), which is the same for the same value, so that rows of one customer can be counted. The server
            reads the key from ``DAGSTER_MLOPS_PREDICTION_LOG_KEY``.
        share: Share of the rows that are logged, chosen by a hash of the request id. The others cannot be traced.
        refused: The answer to a client whose rows the disk refuses: with ``error``, none; with ``answer``, the
            prediction, and the number of rows that the log has lost is written down once there is room.
        patience: Seconds that a request waits for the disk, while it is busy with an earlier one, before it counts as
            refused.
    """

    private: Mapping[str, Literal["drop", "hash"]] = {}
    share: float = 1.0
    refused: Literal["error", "answer"] = "error"
    patience: float = 10.0

    def faults(self) -> dict[str, bool]:
        """Texts of what has no meaning, each with True if it is so."""
        words = {*self.private.values()}
        return {
            f"private={dict(self.private)!r} has other words than 'drop' and 'hash'": not words <= {"drop", "hash"},
            f"share={self.share!r} is not above 0 and at most 1": not 0 < self.share <= 1,
            f"refused={self.refused!r} is not 'error' or 'answer'": self.refused not in ("error", "answer"),
            f"patience={self.patience!r} is not above 0": not self.patience > 0,
        }

    def check(self) -> "LogRules":
        """The rules themselves.

        Raises:
            ValueError: one of them has no meaning.
        """
        if texts := [text for text, is_true in self.faults().items() if is_true]:
            raise ValueError(f"LogRules: {'; '.join(texts)}.")
        return self

    def to_environment(self) -> dict[str, str]:
        """The variables that tell a server these rules."""
        rules = self.check()._asdict()
        return {RULES: json.dumps({**rules, "private": dict(self.private)}, sort_keys=True)}

    @classmethod
    def from_environment(cls) -> "LogRules":
        """The rules that the deployment asked for."""
        return cls(**json.loads(os.environ.get(RULES, "{}"))).check()

    def facts(self) -> dict[str, Any]:
        """Facts for readers of rows that these rules have changed."""
        private = {"private": dict(self.private)} if self.private else {}
        return {**private, **({"logged_share": self.share} if self.share < 1 else {})}

    def logs(self, request_id: str) -> bool:
        """True for a row that is logged. It is the same for the same id, on every server."""
        if self.share >= 1:
            return True
        digest = hashlib.sha256(request_id.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def without_private(self, row: Mapping[str, Any], key: bytes = b"") -> Mapping[str, Any]:
        """The row as it may be logged."""
        if not self.private:
            return row
        return {
            name: _hash(value, key) if self.private.get(name) == "hash" else value
            for name, value in row.items()
            if self.private.get(name) != "drop"
        }

    def key(self) -> bytes:
        """The key for hashes.

        Raises:
            ValueError: a hash is asked for without a key: names and numbers can be guessed from a bare hash.
        """
        key = os.environ.get(KEY, "").encode()
        if "hash" in self.private.values() and len(key) < 16:
            raise ValueError(
                f"a private feature is to be hashed, and {KEY} has less than 16 characters. Set it to a secret, and "
                "name it in server_environment, so that the server gets it."
            )
        return key


def _hash(value: Any, key: bytes) -> str | None:
    return None if value is None else hmac.new(key, encode(value), hashlib.sha256).hexdigest()[:_LENGTH]
