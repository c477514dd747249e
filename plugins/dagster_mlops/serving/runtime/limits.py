"""Limits on the cost of a request, of one worker."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import msgspec

_POSITIVE = Annotated[int, msgspec.Meta(gt=0)] | Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one worker."""

    timeout: float = 30
    """Seconds from the whole request to its answer."""
    body_timeout: float = 10
    """Seconds that a client may take to send its body."""
    body_bytes: int = 16 * 2**20
    rows: int = 100_000
    """Of one request."""
    waiting: int = 1024
    """Requests that wait for the model."""
    held_bytes: int = 64 * 2**20
    """Of all bodies until they are answered. Those of 256 KiB or less are always taken; their number is limited."""
    threads: int = 1
    """That score. More help a model that waits, or computes outside of Python; it must then be safe in threads."""

    def changed_by(self, text: str) -> "Limits":
        """These limits with those that a JSON object names.

        >>> Limits().changed_by('{"rows": 10}').rows
        10

        Raises:
            ValueError: it is not such an object, or a limit is not a positive number.
        """
        names = [field.name for field in fields(self)]
        try:
            changes: Any = msgspec.json.decode(text or "{}", type=dict[Literal[*names], _POSITIVE])
        except msgspec.MsgspecError as error:
            raise ValueError(f"DAGSTER_MLOPS_LIMITS: {error}. Its names are {', '.join(names)}.") from None
        return replace(self, **changes)
