"""Restoration of a history: each place gets the sound entries that only the other one has; none is replaced."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.history.log import Head, in_order
from dagster_mlops.promotion.history.verification import Store, verify
from dagster_mlops.tools import KeepsHistory

if TYPE_CHECKING:
    from dagster_mlops.promotion.history.verification import Keys

_AT_ONCE = 200  # entries in one event


@lazy_dataclass(frozen=True)
class Whole:
    """A history out of two places, sound, with the newest head of it; empty if none is left."""

    model: str
    texts: tuple[str, ...]
    head: str

    def parts(self, existing: Mapping[int, Any]) -> list[dict[str, Any]]:
        """The parts, as events bring them, with the entries that are not among the `existing` ones."""
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(self.texts):
            if number in existing:
                continue
            last = parts[-1] if parts else None
            if last and last["first"] + len(last["entries"]) == number and len(last["entries"]) < _AT_ONCE:
                last["entries"].append(text)
            else:
                parts.append({"model": self.model, "first": number, "entries": [text], "head": ""})
        if parts and parts[-1]["first"] + len(parts[-1]["entries"]) == len(self.texts):
            parts[-1]["head"] = self.head
        return parts


def whole(model: str, registry: Store, log: Store, keys: "Keys") -> Whole:
    """The history that two places have together.

    Raises:
        HistoryError: the places differ in an entry, or have one that was changed, or one is in neither.
    """
    merged: dict[int, list[str]] = {}
    for store in (registry, log):
        for number, texts in store.texts.items():
            merged.setdefault(number, []).extend(texts)
    for number, texts in sorted(merged.items()):
        if len(set(texts)) > 1:
            raise HistoryError(
                f"{registry.name} and {log.name} differ in entry {number} of {model!r}: one of them was changed, so "
                f"nothing was written. `dagster-mlops history verify {model}` says which one can be read, and which a "
                "key has signed. Nothing here replaces an entry: keep a copy of the other one, remove it (in MLflow, "
                "by `mlflow gc` of the run with the history), and restore again."
            )
    heads = [*registry.heads, *log.heads]
    together = Store(f"{registry.name} and {log.name}", {number: texts[:1] for number, texts in merged.items()}, heads)
    findings = [finding for finding in verify(model, [together], {}, keys).findings if finding.entry is not None]
    if findings:
        raise HistoryError(f"nothing was written, because the history of {model!r} is not sound: {findings[0]}")
    texts = tuple(in_order({number: texts[0] for number, texts in merged.items()}))
    sizes = {text: size for text in heads if (size := Head.last_of(text, model).size)}
    return Whole(model, texts, max(sizes, key=lambda text: sizes[text], default=""))


def write(keeper: KeepsHistory, history: Whole, existing: Mapping[int, str]) -> list[int]:
    """Write the entries that the registry lacks, and the head; the numbers of those that were written.

    Raises:
        HistoryError: the registry has another text as one of them.
    """
    missing = [number for number in range(len(history.texts)) if number not in existing]
    for number in missing:
        if not keeper.append(history.model, number, history.texts[number]):
            raise HistoryError(f"someone else wrote entry {number} of {history.model!r} meanwhile. Restore again.")
    if history.head and keeper.head(history.model) != history.head:
        keeper.keep_head(history.model, history.head)
    return missing
