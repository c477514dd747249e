"""The four answers of a tool about a ref, so that an error never reads as "no lineage"."""

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
    """The tool answers that the thing is gone. `record` has the facts that are left."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "deleted"


@dataclass(frozen=True)
class Faulty:
    """The tool's content is damaged or contradicts the ref, such as another hash under the same path."""

    reason: str
    record: Record | None = None
    bucket: ClassVar[str] = "faulty"


Answer = Accessible | Inaccessible | Deleted | Faulty
