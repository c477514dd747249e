"""The answers of a tool about a ref, so that an error never reads as "no lineage"."""

from typing import ClassVar

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.provenance.credentials import mask_credentials
from dagster_mlops.provenance.record import Record

_LONGEST = 100_000  # characters


@lazy_dataclass(frozen=True)
class Accessible:
    """The tool has the thing, and this is its record."""

    record: Record
    bucket: ClassVar[str] = "accessible"


@lazy_dataclass(frozen=True)
class _NotAccessible:
    """The reason why the thing is not there, and the facts about it that are left."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if isinstance(self.reason, str):  # most quote a tool; a broken tool may return anything
            head, rest = self.reason[:_LONGEST], self.reason[_LONGEST:]  # of megabytes, pages show the beginning only
            object.__setattr__(self, "reason", mask_credentials(head) + rest)


class Inaccessible(_NotAccessible):
    """The tool cannot be asked now, or holds the pointer but not the content: a dead server, a lost remote."""

    bucket = "inaccessible"


class Deleted(_NotAccessible):
    """The tool answers that the thing is gone. `record` has the facts that are left."""

    bucket = "deleted"


class Faulty(_NotAccessible):
    """The tool's content is damaged or contradicts the ref, such as another hash under the same path."""

    bucket = "faulty"


class Unknown(_NotAccessible):
    """It was never kept: nothing on record says what it was, and no tool can be asked for it."""

    bucket = "unknown"


Answer = Accessible | Inaccessible | Deleted | Faulty | Unknown
