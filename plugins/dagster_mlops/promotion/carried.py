"""The statement that travels with a copied version: why it holds an alias in the registry that it came from."""

import hashlib
import json
from collections.abc import Sequence

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import holder
from dagster_mlops.errors import GateError, HistoryError
from dagster_mlops.promotion.history.entry import Entry, made, promotion_behind, read_entry
from dagster_mlops.promotion.history.envelope import Envelope
from dagster_mlops.promotion.history.verification import Store, verify
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, KeepsHistory

FILE = "promotion/statement.json"
"""Path of the file that is kept with the version."""


@lazy_dataclass(frozen=True)
class Statement:
    """The entries by which a version got an alias, as signed texts: requests, approvals, and the move as the last one.

    Before those of a rollback stands the promotion of the version to which it returned.

    Without entries, `missing` says why there are none.
    """

    alias: str
    texts: Sequence[str] = ()
    missing: str = ""

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return json.dumps({"alias": self.alias, "entries": list(self.texts), "missing": self.missing}).encode()

    @classmethod
    def read(cls, content: bytes) -> "Statement":
        """Read the file.

        Raises:
            HistoryError: it is not such a file.
        """
        try:
            facts = json.loads(content)
            alias, texts, missing = facts["alias"], facts["entries"], facts["missing"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HistoryError(f"{FILE} cannot be read: {type(error).__name__}: {error}") from error
        if not all(isinstance(text, str) for text in (alias, missing)) or not isinstance(texts, list):
            raise HistoryError(f"{FILE} has facts of a wrong type")
        return cls(alias, [str(text) for text in texts], missing)

    def entries(self) -> list[tuple[Entry, Envelope]]:
        """The entries, the move last.

        Raises:
            HistoryError: there are none, or one cannot be read.
        """
        if self.missing or not self.texts:
            raise HistoryError(self.missing or "it is empty")
        return [read_entry(text) for text in self.texts]


def statement_hash(content: bytes) -> str:
    """The hash of the file, by which the copy asset says which one it has brought."""
    return hashlib.sha256(content).hexdigest()


def statement_of(models: HoldsModels, version: ModelVersion, alias: str) -> Statement:
    """The statement by which a version holds an alias; without entries where it does not.

    Raises:
        GateError: the history was changed.
    """
    name = f"version {version.version} of {version.name!r}"
    if not isinstance(models, KeepsHistory):
        return Statement(alias, missing=f"the registry {models.tool!r}, where {name} is from, keeps no history")
    texts = models.history(version.name)
    store = Store(models.tool, {number: [text] for number, text in texts.items()}, [models.head(version.name)])
    verification = verify(version.name, [store], {}, {})
    # Those without an entry are of heads and aliases, which are late where a promotion was interrupted.
    if finding := next((finding for finding in verification.findings if finding.entry is not None), None):
        raise GateError(
            f"{name} is not copied: its history does not hold: {finding}. See `dagster-mlops history verify "
            f"{version.name}`."
        )
    why, entries = list[Entry](), made(entry for entry in verification.entries if entry.alias == alias)
    for entry in reversed(entries):
        if why and entry.is_move:
            break
        if why or entry.is_move:
            why.insert(0, entry)
    current = holder(models, version.name, alias)
    if not why:
        return Statement(alias, missing=f"{name} was not promoted to {alias!r} where it is from")
    if why[-1].after != version.version or current is None or current.version != version.version:
        last = f"by {why[-1].kind} of {why[-1].at[:10]} that is version {why[-1].after or 'none'}"
        return Statement(alias, missing=f"{name} does not hold {alias!r} where it is from: {last}")
    promotion = promotion_behind(entries, why[-1])
    earlier = [promotion] if promotion and promotion not in why else []
    return Statement(alias, [texts[entry.index] for entry in (*earlier, *why)])
