"""Verification of a history: its entries in each store, their signatures and order, its heads, the aliases current.

An entry has the root of the Merkle tree of all before it, and is signed where there is a key. So a change shows in one
of three ways: its signature does not hold, a later root does not follow from it, or two stores differ.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from typing import TYPE_CHECKING, Any, TypeVar

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.history.entry import Entry, read_entry
from dagster_mlops.promotion.history.log import Head
from dagster_mlops.promotion.history.merkle import Tree

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Keys = Mapping[str, Ed25519PublicKey]

_T = TypeVar("_T")
_AGAIN = (
    "a promotion was interrupted, or ran where this place was not asked (the next one writes it, and so does "
    "`dagster-mlops history restore`)"
)
_PART = 500  # texts that one thread reads: for each by itself, handing it over would take a third of the time
_MOST = 1000  # missing entries, as findings
_MISSING = f"it is missing: removed, or {_AGAIN}"


@lazy_dataclass(frozen=True)
class Finding:
    """A problem: with an entry (by number), a head or an alias (None), in a store."""

    entry: int | None
    store: str
    problem: str

    def __str__(self) -> str:
        return f"{'' if self.entry is None else f'entry {self.entry}, '}{self.store}: {self.problem}"


@lazy_dataclass(frozen=True)
class Store:
    """A place with entries and heads: texts by number, of which there may be several, and heads, the newest first."""

    name: str
    texts: Mapping[int, Sequence[str]]
    heads: Sequence[str]


@lazy_dataclass(frozen=True)
class Held:
    """A version that holds an alias current, and the hash of its files as the registry has it."""

    version: str
    sha256: str


@lazy_dataclass(frozen=True)
class Verification:
    """The outcome: without findings nothing was changed. `strength` names those who could have hidden a change.

    `notes` are about texts that someone else wrote where the next entry belonged. They moved no alias.
    """

    model: str
    entries: tuple[Entry, ...]
    root: str
    findings: tuple[Finding, ...]
    strength: str
    notes: tuple[Finding, ...] = ()

    @property
    def holds(self) -> bool:
        """True if nothing was found."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        findings, notes = ([dict(vars(each)) for each in several] for several in (self.findings, self.notes))
        facts = {"model": self.model, "entries": len(self.entries), "root": self.root, "strength": self.strength}
        return {**facts, "holds": self.holds, "findings": findings, "notes": notes}


@lazy_dataclass(frozen=True)
class _Read:
    """A text with its entry, and the reason why it is not sound; the id of a trusted key that signed it."""

    text: str
    entry: Entry | None
    problem: str = ""
    signer: str = ""


def verify(model: str, stores: Sequence[Store], holders: Mapping[str, Held], keys: "Keys") -> Verification:
    """Compare the stores with each other, with their heads, the public keys and the versions that hold aliases.

    Whoever may write to a registry may write a text that is not an entry where the next one belongs. Promoters go on
    behind it, and the root of the next entry has it. So it is a note at the end, and where a sound entry follows. In
    the place of an entry it is a finding: the other store, a head, or the root of the entry after it says so.
    """
    texts = list(dict.fromkeys(chain.from_iterable(chain.from_iterable(store.texts.values()) for store in stores)))
    reads = _in_threads(lambda text: _read(text, keys), texts)
    by_number: dict[int, list[str]] = {}
    for number, several in chain.from_iterable(store.texts.items() for store in stores):
        by_number.setdefault(number, []).extend(several)

    def is_foreign(number: int, text: str) -> bool:
        entry = reads[text].entry
        return entry is None or bool(entry.misplaced(model, number))

    near = (number for number in by_number if number < len(by_number) + _MOST)
    size = 1 + max((n for n in near if not all(is_foreign(n, text) for text in by_number[n])), default=-1)
    end = next(number for number in count(size) if number not in by_number)  # with such texts after the last entry
    tree, roots, entries, signed = Tree(), [Tree().root()], [], 0
    findings, notes, foreign = list[Finding](), list[Finding](), list[Finding]()
    for number in range(end):
        sound, problems, of_number = "", list[Finding](), by_number.get(number, [])
        for store in stores:
            candidates = [reads[text] for text in store.texts.get(number, ())]
            if not candidates and number < size:
                findings.append(Finding(number, store.name, _MISSING))
            for read in candidates:
                problem = read.problem or (_misplaced(read.entry, model, number, roots[-1]) if read.entry else "")
                if not problem and keys and signed and not read.signer:
                    problem = "no key that you trust has signed it, as one has those before"
                if not problem and sound and read.text != sound:
                    problem = "it is not the entry that another store has"
                if problem:
                    problems.append(Finding(number, store.name, problem))
                sound = sound or ("" if problem else read.text)
        if len({*of_number}) == 1 and is_foreign(number, of_number[0]):
            foreign += problems
        else:
            (notes if sound else findings).extend(foreign)
            findings += problems
            foreign = []
        # Without a sound one, go on with what is there: the entries after it then say whether they followed from it.
        text = sound or next(iter(of_number), "")
        if of_number and not is_foreign(number, text):
            entries += [entry for entry in [reads[text].entry] if entry]
            signed += bool(reads[text].signer)
        tree.append(text.encode())
        roots.append(tree.root())
    of_heads = [each for store in stores for each in _of_heads(model, store, keys, roots, size, bool(signed))]
    is_replaced = any(each.entry is not None and each.entry >= size for each in of_heads)
    for each in foreign:  # at the end, an entry of another place may as well be all that is left of the right one
        is_entry = any(reads[text].entry for text in by_number[each.entry or 0])
        (findings if is_replaced or is_entry else notes).append(each)
    findings += of_heads
    for number, name in sorted((number, store.name) for store in stores for number in store.texts if number >= end):
        is_entry = any(reads[text].entry for text in by_number[number])
        (findings if is_entry else notes).append(Finding(number, name, "it stands behind a gap"))
    if keys and entries and not signed:
        findings.append(Finding(None, "signatures", "no entry is signed by a key that you trust"))
    findings += _of_aliases(entries, holders)
    strength = _strength(stores, signed, len(entries), keys)
    return Verification(model, tuple(entries), roots[-1], tuple(findings), strength, tuple(_of_foreign(notes, entries)))


def _of_foreign(notes: Iterable[Finding], entries: Sequence[Entry]) -> Iterable[Finding]:
    """The notes about texts that are not entries: when each was written, by the entries around it."""
    for each in {each.entry: each for each in notes}.values():
        before = next((f" after {entry.at[:16]}" for entry in reversed(entries) if entry.index < (each.entry or 0)), "")
        after = next((f" and before {entry.at[:16]}" for entry in entries if entry.index > (each.entry or 0)), "")
        problem = f"someone wrote a text that is not an entry here{before}{after}: {each.problem}"
        yield Finding(each.entry, each.store, f"{problem}. It moved no alias and stands in the place of no entry")


def _in_threads(read: Callable[[str], _T], texts: Sequence[str]) -> dict[str, _T]:
    """The result of `read` for each text. The library that verifies signatures lets other threads run."""
    parts = [texts[start : start + _PART] for start in range(0, len(texts), _PART)]
    with ThreadPoolExecutor() as threads:
        results = threads.map(lambda part: [read(text) for text in part], parts)
        return dict(zip(texts, chain.from_iterable(results), strict=True))


def _read(text: str, keys: "Keys") -> _Read:
    try:
        entry, envelope = read_entry(text)
    except HistoryError as error:
        return _Read(text, None, str(error))
    try:
        return _Read(text, entry, signer=envelope.signer(keys))
    except HistoryError as error:
        return _Read(text, entry, str(error))


def _misplaced(entry: Entry, model: str, number: int, root: str) -> str:
    if problem := entry.misplaced(model, number):
        return problem
    return "" if entry.root == root else "the entries before it are not those on which it was written"


def _read_head(text: str, keys: "Keys") -> tuple[Head, str] | HistoryError:
    """A head with the id of a trusted key that signed it, or the reason why it cannot be read."""
    try:
        head, envelope = Head.read(text)
        return head, envelope.signer(keys)
    except HistoryError as error:
        return error


def _of_heads(
    model: str, store: Store, keys: "Keys", roots: Sequence[str], last: int, is_signed: bool
) -> Iterable[Finding]:
    size, newest = len(roots) - 1, 0
    heads = [*dict.fromkeys(filter(None, store.heads))]
    for read in _in_threads(lambda text: _read_head(text, keys), heads).values():
        if isinstance(read, HistoryError):
            yield Finding(None, store.name, f"a head cannot be read: {read}")
            continue
        head, signer = read
        newest = max(newest, head.size)
        if head.model != model:
            yield Finding(None, store.name, f"a head of {head.model!r}")
        elif is_signed and not signer and head.size == newest:
            yield Finding(None, store.name, "no key that you trust has signed its newest head")
        elif head.size > size:
            for number in range(size, min(head.size, size + _MOST)):
                yield Finding(number, store.name, f"it is gone: a head counts {head.size} entries")
        elif head.root != roots[head.size]:
            yield Finding(head.size - 1, store.name, "a head says that the entries up to here were others")
    if newest < last:
        yield Finding(None, store.name, f"its head is of {newest} entries, of {last}: an old one, or {_AGAIN}")


def _of_aliases(entries: Sequence[Entry], holders: Mapping[str, Held]) -> Iterable[Finding]:
    for alias, entry in {entry.alias: entry for entry in entries if entry.is_move}.items():
        current = holders.get(alias, Held("", ""))
        if current.version != entry.after:
            versions = f"version {current.version or 'none'} holds it, and by the history {entry.after or 'none'}"
            yield Finding(None, f"alias {alias}", f"{versions}: moved by hand, which the next promotion writes down")
        elif entry.sha256 and current.sha256 != entry.sha256:
            yield Finding(entry.index, f"version {entry.after}", "its files are not those that were promoted")


def _strength(stores: Sequence[Store], signed: int, size: int, keys: "Keys") -> str:
    names = " and ".join(store.name for store in stores)
    if not keys:
        return f"signatures not verified, no public key is given: whoever can write to {names} could have changed both"
    if not signed:
        return f"no entry has a signature of your keys: whoever can write to {names} could have changed both"
    unsigned = f", which vouch for the {size - signed} before them" if size > signed else ""
    signers = f"signed by {', '.join(keys)}: {signed} of {size} entries{unsigned}"
    return f"{signers}; only who has the key could have changed them"
