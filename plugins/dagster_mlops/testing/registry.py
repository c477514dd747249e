"""The contract of a model registry."""

import math
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_versions import holder
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.entry import REQUEST
from dagster_mlops.promotion.history.log import History, moves_of
from dagster_mlops.promotion.moves import promote_version
from dagster_mlops.promotion.rules.improvement import Improvement
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.testing.tools import refuses
from dagster_mlops.tools import (
    HoldsModels,
    KeepsFiles,
    KeepsHistory,
    ModelCopy,
    ModelRegistry,
    SetsAliases,
    TakesModels,
)

_NOTE = 'Größe: 3 · "quoted"\nsecond line'


def check_registry(
    registry: ModelRegistry, *, model: str, worse: str, better: str, metric: str, atomic: bool = True
) -> None:
    """Check the behaviour of a registry that promotion and evaluation rely on; a violation is an AssertionError.

        def test_the_registry_keeps_its_contract(acme_registry):
            ...  # register two versions of 'churn', and log their metric
            check_registry(acme_registry, model="churn", worse="1", better="2", metric="auc")

    Aliases that begin with ``contract-`` and notes by the key ``contract`` are left behind.

    Args:
        registry: Resource that is checked.
        model: Name of a registered model.
        worse: One of its versions, with a lower value of `metric`.
        better: A later version, with a higher value.
        metric: Name of a metric of both.
        atomic: Also try several moves of one alias at the same time, exactly one of which may succeed. MLflow cannot
            compare and set.
    """
    with registry.models() as models:
        assert isinstance(models, HoldsModels), f"{type(models).__name__} lacks a method of HoldsModels"
        first, second = models.version(model, worse), models.version(model, better)
        _check_names(models, first, second, metric)
        _check_moves(models, first, second)
        _check_pointers(models, first, second)
        _check_notes(registry, models, first, second)
        _check_files(models, first, second)
        _check_copies(models, first)
        _check_healing(models, first, second, metric)
        _check_history(registry, models, model)
    if atomic:
        _check_rivals(registry, first, second)


def _check_names(models: HoldsModels, first: ModelVersion, second: ModelVersion, metric: str) -> None:
    assert (first.tool, second.tool) == (models.tool, models.tool), "a record names another tool than the registry"
    assert models.version(second.name) == second, "without a version, the newest is expected"
    values = [float(models.metrics(version)[metric]) for version in (first, second)]
    assert all(map(math.isfinite, values)) and values[0] < values[1], f"{metric} is {values}, lower first is expected"
    for name, which in (("contract-no-model", ""), (first.name, "contract-no-version"), (first.name, "@contract-no")):
        call = f"version({name!r}, {which!r})"
        refuses(lambda name=name, which=which: models.version(name, which), call, ModelVersionError)
    with tempfile.TemporaryDirectory() as folder:
        stored = models.fetch(first, Path(folder))
        assert (stored.folder / "MLmodel").is_file() and stored.flavors, "fetch gives an MLmodel folder"
        assert stored.folder.is_relative_to(folder), "fetch copies below the folder that is given"


def _check_moves(models: HoldsModels, first: ModelVersion, second: ModelVersion) -> None:
    name, alias = first.name, "contract-moves"
    assert holder(models, name, alias) is None, f"{alias} is held already: use a fresh registry"
    assert not models.move(name, alias, first.version, expected=second.version), "no version held it"
    assert models.move(name, alias, first.version, expected=""), "an alias that no version holds can be given"
    assert not models.move(name, alias, second.version, expected=""), "the first version held it"
    assert _held(models, name, alias) == first.version, "a move that was refused changed the alias"
    assert models.move(name, alias, second.version, expected=first.version), "the holder was as expected"
    assert _held(models, name, alias) == second.version
    assert models.move(name, alias, first.version, expected=second.version), "an alias can go back"
    assert _held(models, name, alias) == first.version
    assert alias in models.version(name, first.version).aliases, "the record names the aliases"
    assert alias not in models.version(name, second.version).aliases, "an alias has one holder"


def _check_pointers(models: HoldsModels, first: ModelVersion, second: ModelVersion) -> None:
    if not isinstance(models, SetsAliases):
        return
    name, alias = first.name, "contract-pointer"
    for version in (first.version, second.version, second.version, "", ""):
        models.set_alias(name, alias, version)
        assert _held(models, name, alias) == version, "an alias can be set and removed at any time, also twice"


def _check_notes(registry: ModelRegistry, models: HoldsModels, first: ModelVersion, second: ModelVersion) -> None:
    models.note(first, "contract", "draft")
    models.note(first, "contract", _NOTE)
    with registry.models() as reopened:
        assert reopened.notes(first).get("contract") == _NOTE, "a note is kept as it is, the last one by its key"
        assert "contract" not in reopened.notes(second), "a note is on one version"


def _check_files(models: HoldsModels, first: ModelVersion, second: ModelVersion) -> None:
    if not isinstance(models, KeepsFiles):
        return
    path, content = "contract/bytes.bin", bytes(range(256))
    models.write_file(first, path, content)
    assert models.read_file(first, path) == content, "a file is kept byte for byte"
    refuses(lambda: models.read_file(second, path), "read_file of a file that is not there", ModelVersionError)


def _check_history(registry: ModelRegistry, models: HoldsModels, name: str) -> None:
    if not isinstance(models, KeepsHistory):
        return
    ours, theirs = History(models, models, name), History(models, models, name)
    move = {"kind": REQUEST, "alias": "contract-history", "before": "", "after": "", "by": "contract"}
    assert ours.append(**move, why=_NOTE, facts={"long": "Größe: 3" * 4000}), "an entry is kept"
    assert not theirs.append(**move, why="another", facts={}), "an entry that is there is not replaced"
    assert models.append(name, len(ours.texts) - 1, ours.texts[-1]), "the same entry again is there already"
    models.keep_head(name, theirs.head())
    models.keep_head(name, ours.head())
    with registry.models() as reopened:
        assert isinstance(reopened, KeepsHistory)
        assert History(reopened, reopened, name).texts == ours.texts, "entries are kept as they are, long ones too"
        assert reopened.head(name) == ours.head(), "the last head counts"
        assert not reopened.history("contract-no-model") and not reopened.head("contract-no-model")


def _check_copies(models: HoldsModels, first: ModelVersion) -> None:
    if not isinstance(models, TakesModels):
        return
    content, versions = {"contract/copy.txt": b"statement"}, list[ModelVersion]()
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            stored = models.fetch(first, Path(folder)).folder
            facts: Any = {"version": "0", "tracking_uri": "", "sha256": model_digest(stored), "upstream": (first.ref,)}
            record = ModelVersion(tool=models.tool, name=f"{first.name}-contract-copy", **facts)
            versions.append(models.take(ModelCopy(record, stored, models.metrics(first), content)))
    assert versions[0] == versions[1], "the same version is copied once"
    copy = models.version(versions[0].name)
    assert copy == versions[0] and copy.upstream == (first.ref,), "the copy names its origin"
    with tempfile.TemporaryDirectory() as folder:
        assert model_digest(models.fetch(copy, Path(folder)).folder) == copy.sha256, "the files are those on record"
    assert dict(models.metrics(copy)) == dict(models.metrics(first)), "the metrics come along"


def _check_healing(models: HoldsModels, first: ModelVersion, second: ModelVersion, metric: str) -> None:
    """A promotion that dies after its entry, or after the move, is made by the next one, and is on record once."""
    alias, author, rules = "contract-healing", Author("contract"), [Improvement(metric=metric)]
    judge = Gate(rules, Case(models, second)).judge
    keeper = models if isinstance(models, KeepsHistory) else None
    for dies_at in ("move", *(["keep_head"] if keeper else [])):
        promote_version(models, first, alias, Gate(rules, Case(models, first)).judge, author)
        dying = _Dying(models, dies_at)
        try:
            promote_version(
                cast(HoldsModels, dying), second, alias, judge, author, cast(KeepsHistory, keeper and dying)
            )
        except _Killed:
            pass
        else:
            raise AssertionError(f"the promotion did not reach {dies_at}")
        decision = promote_version(models, second, alias, judge, author)
        assert decision.promoted is (dies_at == "move") and _held(models, first.name, alias) == second.version
        repetition = promote_version(models, second, alias, judge, author)
        assert not repetition.promoted, "a promotion that is run again moves nothing"
        if keeper:
            moves = [(move.before, move.after) for move in moves_of(models, first.name, alias)]
            assert moves == [("", first.version), (first.version, second.version)], f"the history says {moves}"
        alias += "-2"


def _check_rivals(registry: ModelRegistry, first: ModelVersion, second: ModelVersion) -> None:
    """Of several rivals that all saw the alias free, one moves it."""
    alias, winners, start = "contract-rivals", [], threading.Barrier(4)

    def attempt(version: ModelVersion) -> None:
        with registry.models() as models:
            start.wait(30)
            if models.move(version.name, alias, version.version, expected=""):
                winners.append(version.version)

    with ThreadPoolExecutor(4) as pool:
        for rival in [pool.submit(attempt, version) for version in (first, second, first, second)]:
            rival.result()
    with registry.models() as models:
        assert _held(models, first.name, alias) in winners, "the holder is not a rival whose move succeeded"
    assert len(winners) == 1, f"the moves of {len(winners)} of 4 rivals succeeded"


def _held(models: HoldsModels, name: str, alias: str) -> str:
    version = holder(models, name, alias)
    return version.version if version else ""


class _Killed(BaseException):
    """Stands for the end of a process, without ending the tests."""


class _Dying:
    """A registry whose process is killed right before its first `move`, or right after it, before the record."""

    def __init__(self, models: HoldsModels, dies_at: str) -> None:
        self._models, self._dies_at, self._moved = models, dies_at, False

    def __getattr__(self, name: str) -> object:
        if name == self._dies_at and (name == "move" or self._moved):
            raise _Killed
        self._moved = self._moved or name == "move"
        return getattr(self._models, name)
