"""What a tool answers about a ref: one of four buckets, so that an error never reads as "no lineage"."""

from dataclasses import dataclass
from typing import ClassVar

from dagster_mlops.provenance.record import Record


@dataclass(frozen=True)
class Accessible:
    """The tool has the thing, and this is its record."""

    record: Record
    bucket: ClassVar[str] = "accessible"


@dataclass(frozen=True)
class Inaccessible:
    """The tool cannot be asked now, or holds the pointer but not the content: a dead server, a lost remote."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "inaccessible"


@dataclass(frozen=True)
class Deleted:
    """The tool answers, and says that the thing is gone. `record` is what is still known of it."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "deleted"


@dataclass(frozen=True)
class Faulty:
    """The tool answers, but what it says is damaged or contradicts the ref, e.g. another hash under the same path."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "faulty"


Answer = Accessible | Inaccessible | Deleted | Faulty
