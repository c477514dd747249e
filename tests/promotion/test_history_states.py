"""Whatever happens in a registry, one version holds an alias, and the history says how it came there.

A state machine registers, promotes, moves aliases by hand, and kills promoters between any two of their writes; then
the same with promoters in processes that are really killed.
"""

import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.mlflow.registry.turns import TURN, turn
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.entry import BY_HAND, PROMOTION, Entry
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.promotion.history.verification import Held, Store, verify
from dagster_mlops.promotion.moves import promote_version
from dagster_mlops.promotion.rules.improvement import Improvement
from tests.support import known_warnings
from tests.support.mlflow_processes import PRELOADED, SERVER

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]
ALIASES = ("champion", "staging")
WRITES = {
    "create_experiment", "create_run", "delete_registered_model_tag", "log_param", "set_registered_model_alias",
    "set_registered_model_tag", "set_terminated",
}  # fmt: skip


class Killed(BaseException):
    """Stands for the end of a process."""


class Mortal:
    """A client that can write `left` times more, and then neither reads nor writes."""

    def __init__(self, client: Any, left: int) -> None:
        self.client, self.left = client, left

    def __getattr__(self, name: str) -> Callable[..., Any]:
        request = getattr(self.client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.left < 0:
                raise Killed
            if name in WRITES:
                self.left -= 1
                if self.left < 0:
                    raise Killed
            return request(*arguments, **options)

        return call


class Models(MlflowModels):
    """The registry, with turns of which a dead promoter loses its own soon."""

    lease_s = 0.05

    def turn(self, name: str) -> AbstractContextManager[None]:
        return turn(self.client, name, lease_s=self.lease_s)


def promote(models: MlflowModels, name: str, version: str, alias: str = "champion") -> bool:
    candidate = models.version(name, version)
    judge = Gate([Improvement(metric="auc")], Case(models, candidate)).judge
    return promote_version(models, candidate, alias, judge, Author("test")).promoted


def register(client: Any, name: str, auc: float) -> str:
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "auc", auc)
    return str(client.create_model_version(name, f"/models/{name}", run.info.run_id).version)


def holder(client: Any, name: str, alias: str) -> str:
    return str(client.get_registered_model(name).aliases.get(alias, ""))


def check(models: MlflowModels, name: str, aucs: dict[str, float], aliases: tuple[str, ...]) -> dict[str, list[Entry]]:
    """The history holds, follows from step to step, and each promotion in it was to a better version."""
    store = Store("mlflow", {n: [text] for n, text in models.history(name).items()}, [models.head(name)])
    now = {alias: Held(holder(models.client, name, alias), "") for alias in ALIASES}
    findings = verify(name, [store], now, {}).findings
    assert [f for f in findings if f.store not in {f"alias {each}" for each in ALIASES if each not in aliases}] == []
    moves = {alias: moves_of(models, name, alias) for alias in ALIASES}
    for alias in aliases:
        assert not moves[alias] or moves[alias][-1].after == now[alias].version
    for entries in moves.values():
        assert all(later.before == earlier.after for earlier, later in pairwise(entries)), "no move is missing"
        for entry in entries:
            if entry.kind == PROMOTION and entry.before:
                assert aucs[entry.after] > aucs[entry.before], "a worse version was promoted"
    return moves


class Lifecycle(RuleBasedStateMachine):
    """The life of one model. Hypothesis looks for steps after which the registry and its history disagree."""

    resources: tuple[MlflowResource, ...]  # in a tuple: as an attribute by itself, Dagster would bind it
    names, steps = count(), 0

    def __init__(self) -> None:
        super().__init__()
        [self.resource] = self.resources
        self.client, self.name = self.resource.client(), f"model{next(self.names)}"
        self.models = Models(self.resource, self.client)
        self.client.create_registered_model(self.name)
        self.aucs: dict[str, float] = {}
        self.versions: list[str] = []
        self.by_hand: dict[str, int] = defaultdict(int)
        self.register(0.5)

    @rule(auc=st.floats(0, 1))
    def register(self, auc: float) -> None:
        self.versions.append(version := register(self.client, self.name, auc))
        self.aucs[version] = auc

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def promote(self, data: st.DataObject, alias: str) -> None:
        version = data.draw(st.sampled_from(self.versions))
        before = holder(self.client, self.name, alias)
        promoted = promote(self.models, self.name, version, alias)
        moves = check(self.models, self.name, self.aucs, (alias,))[alias]
        after = holder(self.client, self.name, alias)
        if promoted:
            assert after == version and moves[-1].kind == PROMOTION
        elif after == before and after != version:
            assert self.aucs[version] <= self.aucs[after]
        seen = sum(move.kind == BY_HAND for move in moves)
        assert seen <= self.by_hand[alias], "a move that was not made by hand is said to be"
        assert not [tag for tag in self.client.get_registered_model(self.name).tags if tag.startswith(TURN)]

    @rule(data=st.data(), alias=st.sampled_from(ALIASES), writes=st.integers(0, 12))
    def promote_and_die(self, data: st.DataObject, alias: str, writes: int) -> None:
        version = data.draw(st.sampled_from(self.versions))
        dying: Any = Mortal(self.client, writes)
        try:
            promote(Models(self.resource, dying), self.name, version, alias)
        except Killed:
            time.sleep(Models.lease_s)

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def move_by_hand(self, data: st.DataObject, alias: str) -> None:
        version = data.draw(st.sampled_from(self.versions))
        self.client.set_registered_model_alias(self.name, alias, version)
        self.by_hand[alias] += 1

    @rule(alias=st.sampled_from(ALIASES))
    def remove_by_hand(self, alias: str) -> None:
        self.client.delete_registered_model_alias(self.name, alias)
        self.by_hand[alias] += 1

    @precondition(lambda self: len(self.versions) > 1)
    @rule(data=st.data())
    def delete_a_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.versions))
        for alias in ALIASES:
            self.by_hand[alias] += holder(self.client, self.name, alias) == version
        self.client.delete_model_version(self.name, version)
        self.versions.remove(version)

    @invariant()
    def count_steps(self) -> None:
        type(self).steps += 1


@pytest.fixture
def resource(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize(
    ("examples", "steps"), [(3, 15), pytest.param(40, 40, marks=pytest.mark.thorough)], ids=["some", "many"]
)
def test_in_any_order_of_events_the_history_says_how_each_alias_came_to_its_version(resource, examples, steps):
    machine: Any = type("Machine", (Lifecycle,), {"resources": (resource,), "steps": 0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            # A failure is shown as it was: each step of a shorter one would take as long again.
            phases=[Phase.generate],
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        ),
    )
    print(f"{machine.steps} steps")
    assert machine.steps > examples * steps / 4


def promote_for_ever(uri: str, seed: int) -> None:
    resource, rng = MlflowResource(tracking_uri=uri), random.Random(seed)
    models = Models(resource, resource.client())
    models.lease_s = 1.0
    while True:
        best = int(holder(models.client, "delay", "champion") or 0)
        promote(models, "delay", str(max(1, min(300, best + rng.randint(-1, 3)))))


@pytest.mark.thorough
def test_two_promoters_that_are_killed_again_and_again_leave_a_history_that_holds(resource):
    client, aucs, rng = resource.client(), {}, random.Random(0)
    client.create_registered_model("delay")
    for number in range(300):
        aucs[register(client, "delay", number / 300)] = number / 300
    SERVER.set_forkserver_preload(PRELOADED)
    rounds = count()
    while (seed := next(rounds)) < 25 or len(moves_of(MlflowModels(resource, client), "delay", "champion")) < 12:
        assert seed < 100, "hardly a promotion comes to its end"
        promoters = [
            SERVER.Process(target=promote_for_ever, args=(resource.tracking_uri, 2 * seed + each)) for each in (0, 1)
        ]
        for promoter in promoters:
            promoter.start()
        time.sleep(rng.uniform(1.1, 1.8))  # the lease of a promoter that was killed before has to end first
        for promoter in promoters:
            promoter.kill()
            time.sleep(rng.uniform(0, 0.2))
        for promoter in promoters:
            promoter.join()
    time.sleep(1.0)  # until the leases of the dead have ended
    models = Models(resource, client)
    promote(models, "delay", "300")
    moves = check(models, "delay", aucs, ("champion",))["champion"]
    assert {move.kind for move in moves} == {PROMOTION} and moves[-1].after == "300"
    print(f"{len(moves)} moves")
