"""The history of a model in the refs of a git repository: one for each entry, which git creates once."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping

from dagster_mlops.errors import RegistryError
from dagster_mlops.provenance import NAMESPACE

REFS = f"refs/{NAMESPACE}"
_ENTRY = re.compile(r".*/(\d{8})")


class HistoryRefs(ABC):
    """The part of :class:`GtoModels` that keeps histories."""

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes: ...

    @abstractmethod
    def _push(self, *refspecs: str) -> None: ...

    def history(self, name: str) -> Mapping[int, str]:
        self.synchronize()
        # With the size of each text, because one that someone else wrote may have lines that look like other refs.
        form = "--format=%(refname) %(raw:size)%0a%(raw)"
        rest, texts = self._git("for-each-ref", form, f"{_place(name)}/entries/"), dict[int, str]()
        while rest:
            line, _, rest = rest.partition(b"\n")
            ref, _, size = line.decode(errors="replace").rpartition(" ")
            if match := _ENTRY.fullmatch(ref):
                texts[int(match[1])] = rest[: int(size)].decode(errors="replace")
            rest = rest[int(size) + 1 :]
        return texts

    def append(self, name: str, number: int, entry: str) -> bool:
        ref, blob = f"{_place(name)}/entries/{number:08d}", self._blob(entry.encode())
        try:
            # Without a +, the remote refuses another blob for a ref that is there.
            self._push(f"{blob}:{ref}")
            self._git("update-ref", "--stdin", stdin=f"create {ref} {blob}\n".encode())
        except RegistryError:
            self.synchronize()
            existing = self._git("for-each-ref", "--format=%(objectname)", ref).decode().strip()
            if not existing:
                raise
            return existing == blob
        return True

    def head(self, name: str) -> str:
        return self._git("for-each-ref", "--format=%(raw)", f"{_place(name)}/head").decode(errors="replace").strip()

    def keep_head(self, name: str, head: str) -> None:
        self._keep(f"{_place(name)}/head", head.encode())

    def _keep(self, ref: str, content: bytes) -> None:
        blob = self._blob(content)
        self._push(f"+{blob}:{ref}")
        self._git("update-ref", ref, blob)

    def _blob(self, content: bytes) -> str:
        return self._git("hash-object", "-w", "--stdin", stdin=content).decode().strip()


def tag_name(name: str) -> str:
    """The name of a model as it stands in a tag, where GTO writes = for a colon."""
    return name.replace(":", "=")


def _place(name: str) -> str:
    return f"{REFS}/history/{tag_name(name)}"
