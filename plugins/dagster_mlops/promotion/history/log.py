"""The history of one model, as a promoter reads and continues it: an entry is written before its alias moves.

So no move is without an entry. A promoter that dies in between leaves an entry without its move: the next one writes
that it was not made, and judges again. No move is made later on an old verdict: the rules, the model and the alias may
be others by then. The head, written after the move, tells an entry without a move from a move by hand.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count, islice, takewhile
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import holder
from dagster_mlops.core.notes import read_note
from dagster_mlops.errors import HistoryError, ModelVersionError
from dagster_mlops.promotion.history.entry import (
    BY_HAND,
    LARGEST,
    LONGEST_NAME,
    LONGEST_REASON,
    UNDONE,
    Entry,
    entry_at,
    made,
    read_entry,
    refuse_text,
)
from dagster_mlops.promotion.history.envelope import (
    HEAD,
    SIGNING_KEY,
    STATEMENT,
    Envelope,
    may_say,
    seal,
    signing_key,
    trusted_keys,
    unseal,
)
from dagster_mlops.promotion.history.merkle import Tree
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, KeepsHistory

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from dagster_mlops.promotion.history.verification import Keys


class Unkept:
    """The history of a registry that keeps none, for as long as the process runs."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def history(self, name: str) -> Mapping[int, str]:
        return self.texts

    def append(self, name: str, number: int, entry: str) -> bool:
        return self.texts.setdefault(number, entry) == entry

    def head(self, name: str) -> str:
        return ""

    def keep_head(self, name: str, head: str) -> None:
        pass


@lazy_dataclass(frozen=True)
class Head:
    """The size of a history and the root of its Merkle tree."""

    model: str
    size: int
    root: str

    @classmethod
    def read(cls, text: str) -> "tuple[Head, Envelope]":
        """A head and the envelope that it came in.

        Raises:
            HistoryError: it is not one.
        """
        envelope = unseal(text, HEAD)
        content = envelope.content()
        try:
            head = cls(content["model"], content["size"], content["root"])
        except (KeyError, TypeError) as error:
            raise HistoryError(f"a head without its facts: {error}") from error
        if not (isinstance(head.model, str) and type(head.size) is int and isinstance(head.root, str)) or head.size < 0:
            raise HistoryError("a head with facts of a wrong type")
        return head, envelope

    @classmethod
    def last_of(cls, text: str, model: str, keys: "Keys | None" = None) -> "Head":
        """The head of this model; one of no entries for another text, or one that none of the `keys` has signed.

        Anyone may set a tag: where there is a key, one that says more than there is stops no promotion.
        """

        def read(text: str) -> Head:
            head, envelope = cls.read(text)
            if keys and not envelope.signer(keys):
                raise HistoryError("it has no signature of a key that is trusted here")
            return head

        head = read_note(text, read, of=f"head of the history of {model!r}", default=None)
        return head if head and head.model == model else cls(model, 0, Tree().root())


class History:
    """The entries of a model, and how they continue. Open it inside a turn, where the registry has turns.

    Raises:
        HistoryError: an entry is missing, or the signing key cannot be read.
    """

    def __init__(self, registry: HoldsModels, keeper: KeepsHistory, model: str) -> None:
        self.registry, self.keeper, self.model = registry, keeper, model
        self._key: Ed25519PrivateKey | None = signing_key()
        # The head first: a promoter that writes meanwhile must not make it newer than the entries.
        head = Head.last_of(keeper.head(model), model, trusted_keys() if self._key else {})
        # A text that is not an entry stays, and the next entry vouches for it: who may write one stops no promotion.
        self.texts = in_order(keeper.history(model))
        self._confirmed, self._tree, root = head.size, Tree(), ""
        for text in self.texts:
            self._tree.append(text.encode())
            if self._tree.size == head.size:
                root = self._tree.root()
        if head.size and root != head.root:
            problem = (
                f"has {len(self.texts)} entries in order, where its head counts {head.size}"
                if len(self.texts) < head.size
                else f"was changed: its first {head.size} entries are not those of its head"
            )
            raise HistoryError(
                f"the history of {model!r} {problem}. See which are gone with `dagster-mlops history verify "
                f"{model}`, and write them again with `dagster-mlops history restore {model}`. If none is, someone has "
                "changed the head, in MLflow the tag dagster_mlops.history_head of the model: remove it."
            )

    def last(self, alias: str) -> Entry | None:
        """The last move of an alias."""
        return next((entry for entry, _ in self._newest() if entry.alias == alias and entry.is_move), None)

    def entries(self, alias: str) -> list[Entry]:
        """All entries about an alias, oldest first; unreadable ones are left out."""
        return _entries(self.model, alias, dict(enumerate(self.texts)))

    def may_have(self, kind: str) -> bool:
        """False if no entry is of this kind."""
        return any(may_say(text, "kind", kind) for text in self.texts)

    def since_last_move(self, alias: str) -> list[Entry]:
        """The entries about an alias after its last move."""
        return [*takewhile(lambda entry: not entry.is_move, self.newest(alias))][::-1]

    def newest(self, alias: str) -> Iterator[Entry]:
        """The entries about an alias, newest first, without moves that were not made. It reads few of many."""
        undone = 0
        for entry, _ in self._newest():
            if entry.alias != alias:
                continue
            if entry.kind == UNDONE:
                undone += 1
            elif entry.is_move and undone:
                undone -= 1
            else:
                yield entry

    def _newest(self) -> Iterator[tuple[Entry, Envelope]]:
        """All entries, newest first, without texts that are not an entry of their place."""
        for number in reversed(range(len(self.texts))):
            with suppress(HistoryError):
                yield entry_at(self.model, number, self.texts[number])

    def head(self) -> str:
        """The head of the entries that are there now."""
        content = {"model": self.model, "size": self._tree.size, "root": self._tree.root()}
        return seal(HEAD, content, self._key)

    def settle(self, alias: str) -> str:
        """The version that holds the alias, in agreement with the history; empty for none.

        An entry of any alias whose move was not made is undone by another; a move of this alias by hand gets its entry.
        """
        unconfirmed = takewhile(lambda read: read[0].index >= self._confirmed, self._newest())
        aliases = {entry.alias for entry, _ in unconfirmed}
        for each in sorted(aliases - {alias}):
            self._settled(each)
        version = self._settled(alias)
        if self._confirmed < len(self.texts):
            self.confirm()
        return version

    def _settled(self, alias: str) -> str:
        last, current = self.last(alias), holder(self.registry, self.model, alias)
        version = current.version if current else ""
        is_replaced = bool(last and current and not has_files(current, last.sha256))
        if last is None or (version == last.after and not is_replaced):
            return version
        kind, why = BY_HAND, "moved in the registry by other means than a promotion"
        if version == last.after:
            why = f"version {version} was replaced in the registry by one with other files"
        # Of a version that is gone, the registry took the alias away, perhaps with the head.
        elif version == last.before and self._confirmed <= last.index and self.is_there(last.after, last.sha256):
            kind, why = UNDONE, f"entry {last.index} was written, and its move was not made: its promoter ended"
        self.append(kind, alias, last.after, version, by="unknown", why=why, facts={})
        return version

    def is_trusted(self, entry: Entry) -> bool:
        """False for an entry without a signature of a trusted key, where this promoter has a key."""
        return self._key is None or read_entry(self.texts[entry.index])[1].is_signed(trusted_keys())

    def move(
        self, kind: str, alias: str, before: str, after: str, *, by: str, why: str, facts: Mapping[str, Any]
    ) -> bool:
        """Write an entry and move the alias; False if another promoter was quicker."""
        if not self.append(kind, alias, before, after, by=by, why=why, facts=facts):
            return False
        if not self.registry.move(self.model, alias, after, expected=before):
            return False
        self.confirm()
        return True

    def append(
        self, kind: str, alias: str, before: str, after: str, *, by: str, why: str, facts: Mapping[str, Any]
    ) -> bool:
        """Write an entry, without a move; False if another promoter has written one at this place.

        Raises:
            HistoryError: the history is signed, and the key is not here: the entry would count as a forged one. Or it
                has a text that is too long, or not in UTF-8.
        """
        refuse_text("the name of an author", by, LONGEST_NAME)
        refuse_text("a reason", why, LONGEST_REASON)
        if not self._key and any(envelope.signatures for _, envelope in islice(self._newest(), 1)):
            raise HistoryError(
                f"the history of {self.model!r} is signed, and {SIGNING_KEY} is not set here. Set it to the key, or do "
                "this where promotions run."
            )
        entry = Entry(
            index=len(self.texts),
            kind=kind,
            model=self.model,
            alias=alias,
            before=before,
            after=after,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            by=by,
            why=why,
            root=self._tree.root(),
            sha256=self.registry.version(self.model, after).sha256 if after else "",
            facts=facts,
        )
        text = seal(STATEMENT, entry.statement(), self._key)
        refuse_text("an entry", text, LARGEST)
        if not self.keeper.append(self.model, entry.index, text):
            return False
        self.texts.append(text)
        self._tree.append(text.encode())
        return True

    def confirm(self) -> None:
        """Write the head: the aliases have followed all entries."""
        self.keeper.keep_head(self.model, self.head())
        self._confirmed = len(self.texts)

    def is_there(self, version: str, sha256: str) -> bool:
        """True if the registry has this version with these files: it may have been deleted, and its number given anew.

        Without a hash, the number has to do.
        """
        try:
            return bool(version) and has_files(self.registry.version(self.model, version), sha256)
        except ModelVersionError:  # deleted
            return False


def has_files(version: ModelVersion, sha256: str) -> bool:
    """False if a version has other files than those with this hash: a number alone may be that of another version."""
    return sha256 in ("", version.sha256) or not version.sha256


def keeper_of(registry: HoldsModels, otherwise: KeepsHistory | None = None) -> KeepsHistory:
    """The registry if it keeps histories, else `otherwise`, else a history that ends with the process."""
    return registry if isinstance(registry, KeepsHistory) else otherwise or Unkept()


def in_order(texts: Mapping[int, str]) -> list[str]:
    """The texts of a history. One behind a gap is not of a promoter: each writes the number after the last."""
    return [texts[number] for number in takewhile(texts.__contains__, count())]


def moves_of(registry: HoldsModels, model: str, alias: str) -> list[Entry]:
    """The moves of an alias that the registry has on record, oldest first; unreadable ones are left out."""
    entries = made(_entries(model, alias, keeper_of(registry).history(model)))
    return [entry for entry in entries if entry.is_move]


def _entries(model: str, alias: str, texts: Mapping[int, str]) -> list[Entry]:
    return [entry for entry in readable(model, texts).values() if entry.alias == alias]


def readable(model: str, texts: Mapping[int, str]) -> dict[int, Entry]:
    """The entries that can be read, by number and in order."""
    entries = {
        number: read_note(
            texts[number],
            lambda text, number=number: entry_at(model, number, text)[0],
            of=f"entry {number} of {model!r}",
            default=None,
        )
        for number in sorted(texts)
    }
    return {number: entry for number, entry in entries.items() if entry}
