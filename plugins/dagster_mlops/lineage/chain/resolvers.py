"""Asks tools about refs, and waits for none of them for ever."""

import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from dagster_mlops.errors import MissingExtraError, ProvenanceError
from dagster_mlops.provenance import Answer, Deleted, Faulty, Inaccessible, Ref, Resolver

RESOLVERS = "dagster_mlops.resolvers"


@runtime_checkable
class KeepsRuns(Protocol):
    """A resolver of a tool that keeps files and a model with each training run; a DagsterMlopsError says why not.

    `rerun` is the Python script that runs a training step again, in the environment of then.
    """

    rerun: Path

    def files(self, ref: Ref, folder: str) -> dict[str, bytes]:
        """The files right below `folder`, by name."""
        ...

    def find_model(self, ref: Ref) -> Inaccessible | Deleted | Faulty | None:
        """Why the run's one model is not there; None when it is."""
        ...

    def fetch_model(self, ref: Ref, folder: Path) -> Path:
        """Copy the model below `folder`, and say where it is."""
        ...


@runtime_checkable
class MakesAgain(Protocol):
    """A resolver of a tool that can make the data behind a ref again; a DagsterMlopsError says why not."""

    def make_again(self, ref: Ref, folder: Path) -> Path:
        """Write a Parquet file below `folder` that is proven to hold what the ref's record says."""
        ...


class Tools:
    """The installed tools, or those given by name; each is loaded at its first question.

    >>> Tools({}).ask(Ref("dvc", "dataset", "raw.parquet@9f")).bucket
    'inaccessible'
    """

    def __init__(self, resolvers: Mapping[str, Resolver] | None = None, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._installed = {} if resolvers is not None else {e.name: e for e in entry_points(group=RESOLVERS)}
        self._resolvers = dict(resolvers or {})
        self._broken: dict[str, Answer] = {}
        self._silent: set[tuple[str, str]] = set()

    @property
    def names(self) -> list[str]:
        """The tools that can be asked."""
        return sorted({*self._resolvers, *self._installed})

    def ask(self, ref: Ref) -> Answer:
        """The tool's answer; one that raises, hangs or is not installed is an answer, too."""
        if ref.tool in self._broken:
            return self._broken[ref.tool]
        if ref.tool not in self._resolvers and ref.tool not in self._installed:
            return Inaccessible(f"{ref.tool!r} has no resolver here; known: {', '.join(self.names) or 'none'}.")
        if (ref.tool, ref.at) in self._silent:
            return Inaccessible(f"{ref.tool} did not answer before (asked at {ref.at or '?'}); not asked again.")
        answers: list[Answer] = []
        # A daemon thread, so that a tool that hangs for ever cannot keep the process from ending.
        thread = threading.Thread(target=lambda: answers.append(self._answer(ref)), daemon=True)
        thread.start()
        thread.join(self._timeout)
        if answers:
            return answers[0]
        self._silent.add((ref.tool, ref.at))
        return Inaccessible(f"{ref.tool} did not answer within {self._timeout:g} s (asked at {ref.at or '?'}).")

    def keeper(self, ref: Ref) -> KeepsRuns:
        """The resolver of the tool that keeps a training run, which has its files and its model.

        Raises:
            ProvenanceError: the tool is not installed, or keeps no runs.
        """
        resolver = self._resolver(ref.tool) if ref.tool in self.names else None
        if not isinstance(resolver, KeepsRuns):
            raise ProvenanceError(
                f"{ref.tool!r} keeps no training runs here; known: {', '.join(self.names) or 'none'}."
            )
        return resolver

    def maker(self, ref: Ref) -> MakesAgain | None:
        """The resolver of a tool that can make again what the ref names; None where the tool cannot."""
        resolver = self._resolver(ref.tool) if ref.tool in self.names else None
        return resolver if isinstance(resolver, MakesAgain) else None

    def _resolver(self, tool: str) -> Resolver:
        if tool not in self._resolvers:
            self._resolvers[tool] = self._installed[tool].load()()
        return self._resolvers[tool]

    def _answer(self, ref: Ref) -> Answer:
        try:
            answer = self._resolver(ref.tool).resolve(ref)
            return answer if isinstance(answer, Answer) else Faulty(f"the {ref.tool} resolver returned {answer!r}.")
        except MissingExtraError as error:
            self._broken[ref.tool] = Inaccessible(str(error))
            return self._broken[ref.tool]
        except OSError as error:
            return Inaccessible(f"{ref.tool} cannot be reached: {type(error).__name__}: {error}")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a tool throws is a finding about this link, never the end
            return Faulty(f"the {ref.tool} resolver failed: {type(error).__name__}: {error}")
