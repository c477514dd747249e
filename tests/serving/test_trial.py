"""Canaries and shadows behind a real Envoy, under traffic, with servers that have a fault."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager

import dagster as dg
import httpx
import pandas as pd
import pytest

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Package
from dagster_mlops.serving import Canary, PredictionLog, Shadow, deployment_asset, repair, status, stop
from dagster_mlops.serving.local import envoy
from dagster_mlops.serving.local.processes import marked
from dagster_mlops.serving.local.state import ENDED, load_all
from dagster_mlops.serving.runtime.log.predictions import SHADOW
from dagster_mlops.serving.trial_fields import CanaryFields, ShadowFields
from tests.support.small_packages import Deployment, SmallPackages

CANARY = Canary(look_seconds=0.3, steps=(0.1, 0.5), slowdown=None)
SHADOW_OPTIONS = Shadow(look_seconds=0.3, slowdown=None)


@pytest.fixture
def deployment(tmp_path):
    deployment = Deployment(tmp_path)
    deployment.roll_out("2")
    yield deployment
    stop(deployment.state_dir)


@contextmanager
def requests(deployment: Deployment, patience: float = 60):
    """Four clients without a pause; yields the counts of (status, deployment), which is (0, "") without an answer.

    They hang up after `patience` seconds.
    """
    over, answers = threading.Event(), Counter()

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        with httpx.Client(base_url=deployment.url, trust_env=False, timeout=patience) as client:
            while not over.is_set():
                body = {"rows": [{"x": draw.random() * 100}]}
                try:
                    answer = client.post("/predict", json=body, headers={"x-mirrored": "guess"})
                    answers[answer.status_code, answer.headers.get("x-deployment")] += 1
                    ready = client.get("/readyz")
                    answers["ready", ready.headers.get("x-deployment")] += 1
                except httpx.HTTPError:
                    answers[0, ""] += 1
                    time.sleep(0.01)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ids(deployment: Deployment) -> dict[str, str]:
    """The last deployment of each phase."""
    return {state.phase: state.id for state in load_all(deployment.state_dir)}


def fault(**shares: float) -> dict[str, str]:
    return {"SMALL_FAULT": json.dumps(shares)}


@pytest.mark.thorough
def test_a_canary_that_is_as_good_gets_all_traffic_and_no_request_fails(deployment):
    outcomes = {}
    old = ids(deployment)["live"]
    with requests(deployment) as answers:
        live, started = deployment.roll_out("2.0", trials=[CANARY], report=outcomes.__setitem__)
    assert started and live.phase == "live" and live.record.traffic == 1
    assert {code for code, _ in answers} == {200, "ready"}
    assert answers[200, live.id] > 0 and answers[200, old] > 0
    rollout = outcomes["canary"]
    assert rollout.verdict.value == "go" and rollout.history[0].share == 0.1
    assert rollout.verdict.parts[1].values > 100, "predictions come from the log"
    [row] = status(deployment.state_dir)
    assert row["healthy"] and row["id"] == live.id
    assert not deployment.roll_out("2.0", trials=[CANARY], report=outcomes.__setitem__)[1]
    assert outcomes["canary"] == f"{live.id} is live already."


def test_a_canary_that_crashes_goes_back_and_is_not_tried_again(deployment):
    outcomes = {}
    old = ids(deployment)["live"]
    faulty = {"environment": fault(crash=0.2), "trials": [CANARY], "report": outcomes.__setitem__}
    error = pytest.raises(DeploymentError, match="its canary went back: the canary is worse by its errors")
    with requests(deployment) as answers, error:
        deployment.roll_out("2.0", **faulty)
    failed = ids(deployment)["failed"]
    # A fifth of the tenth that it gets, for as long as it got that.
    predictions = sum(count for (code, _), count in answers.items() if code != "ready")
    assert 0 < answers[500, failed] < 0.1 * predictions and not {code for code, _ in answers} - {200, 500, "ready"}
    assert not answers["ready", failed], "only predictions are shared out"
    assert outcomes["canary"].verdict.value == "back"
    assert deployment.ask().headers["x-deployment"] == old
    assert deployment.roll_out("2.0", **faulty)[0].id == old
    assert "small:2.0 was refused in" in outcomes["canary"] and "worse by its errors" in outcomes["canary"]
    with requests(deployment), pytest.raises(DeploymentError, match="went back"):  # another option is another trial
        deployment.roll_out("2.0", **{**faulty, "trials": [Canary(look_seconds=0.2, slowdown=None)]})


@pytest.mark.thorough
def test_what_was_worse_than_one_package_is_tried_again_beside_another(deployment):
    faulty = {"environment": fault(crash=0.2), "trials": [CANARY]}
    with requests(deployment):
        with pytest.raises(DeploymentError, match="went back"):
            deployment.roll_out("2.0", **faulty)
        assert deployment.roll_out("2.0", **faulty)[0].record.package == "small:2"
        deployment.roll_out("2.00")
        with pytest.raises(DeploymentError, match="went back"):
            deployment.roll_out("2.0", **faulty)


@pytest.mark.thorough
def test_a_canary_that_hangs_goes_back_although_clients_hang_up_before_the_timeout(deployment):
    error = pytest.raises(DeploymentError, match="its canary went back: the canary is worse by its errors")
    with requests(deployment, patience=0.5) as answers, error:
        deployment.roll_out("2.0", environment=fault(hang=0.2), trials=[CANARY])
    assert answers[0, ""] < 60 and not {code for code, _ in answers} - {200, 0, "ready"}


def test_a_shadow_answers_no_client_and_its_rows_are_in_a_log_of_their_own(deployment):
    outcomes = {}
    faulty = {"environment": fault(wrong=0.2), "trials": [SHADOW_OPTIONS, CANARY], "report": outcomes.__setitem__}
    error = pytest.raises(DeploymentError, match="its shadow went back: the shadow is worse by its differences")
    with requests(deployment) as answers, error:
        deployment.roll_out("2.0", **faulty)
    assert {code for code, _ in answers} == {200, "ready"} and len({who for _, who in answers}) == 1
    assert [*outcomes] == ["shadow", "canary"] and outcomes["canary"] == "the shadow went back."
    log = deployment.state_dir / "predictions"
    assert len(PredictionLog.read(log)["deployment"].unique()) == 1
    mirrored = PredictionLog.read(log / SHADOW)
    assert mirrored["deployment"].unique().tolist() == [f"small/{ids(deployment)['failed']}"]
    entry = PredictionLog.find(log, str(mirrored["request_id"][0]))
    assert entry and entry["deployment"] != mirrored["deployment"][0]


def _roll_out(deployment: Deployment) -> None:
    deployment.roll_out("2.0", trials=[Canary(look_seconds=0.2, steps=(0.5,))])


@pytest.mark.thorough
def test_a_run_that_is_killed_in_a_trial_leaves_no_share_behind(deployment):
    old = ids(deployment)["live"]
    with requests(deployment) as answers:
        run = multiprocessing.get_context("spawn").Process(target=_roll_out, args=(deployment,))
        run.start()
        wait_while(
            lambda: not (load_all(deployment.state_dir)[-1].trial or {}).get("requests"),
            timeout=60,
            error=lambda _: AssertionError("no request reached the canary"),
        )
        os.kill(run.pid or 0, signal.SIGKILL)
        run.join()
        [on_trial] = [row for row in status(deployment.state_dir) if not row["live"]]
        assert "canary with 50.0% of the traffic, not yet" in on_trial["reason"]
        said = repair(deployment.state_dir)
        assert any("Stopped 2.0" in text for text in said)
        answers.clear()
        time.sleep(0.5)
        assert {who for _, who in answers} == {old}
    assert not {code for code, _ in answers} - {200, "ready"}
    assert [row["id"] for row in status(deployment.state_dir)] == [old]


def _roll_out_until(deployment: Deployment, number: int) -> None:
    """A rollout that is killed once it has written so many times who gets which request."""
    replace = os.replace

    def counted(source: str, target: str) -> None:
        nonlocal number
        replace(source, target)
        number -= os.path.basename(target) == "rds.json"
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted  # pyright: ignore[reportAttributeAccessIssue] - of this process, which is about to end
    deployment.roll_out("2.0", trials=[dataclasses.replace(CANARY, more_errors=0.1)])


@pytest.mark.thorough
def test_a_run_that_is_killed_at_any_change_of_the_traffic_leaves_one_deployment_with_all_of_it(deployment):
    packages = []
    with requests(deployment) as answers:
        for number in itertools.count(1):
            run = multiprocessing.get_context("spawn").Process(target=_roll_out_until, args=(deployment, number))
            run.start()
            run.join()
            said = repair(deployment.state_dir)
            [live] = [state for state in load_all(deployment.state_dir) if state.phase not in ENDED]
            assert (live.phase, live.record.traffic) == ("live", 1) and bool(said) == bool(run.exitcode)
            answers.clear()
            time.sleep(0.5)
            assert {who for _, who in answers} == {live.id} and {code for code, _ in answers} == {200, "ready"}
            packages.append(live.record.package)
            if not run.exitcode:
                break
            deployment.roll_out("2")
    assert len(packages) > 5 and packages == sorted(packages, key=len), "there is one switch"


@pytest.mark.thorough
def test_envoy_may_end_and_come_back_while_a_canary_runs(deployment):
    outcomes, killed = {}, []

    def kill() -> None:
        wait_while(lambda: "trial" not in ids(deployment), timeout=60, error=AssertionError, pause=0.1)
        for role, group in marked(deployment.state_dir).items():
            for process in group if role.startswith(envoy.ROLE) else ():
                process.kill()
                killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    with requests(deployment) as answers:
        live, _ = deployment.roll_out("2.0", trials=[CANARY], report=outcomes.__setitem__)
    killer.join()
    assert killed and live.record.package == "small:2.0" and outcomes["canary"].verdict.value == "go"
    assert answers[0, ""] and {code for code, _ in answers} <= {0, 200, 503, "ready"}


def test_there_is_no_trial_without_a_deployment_to_compare_with(tmp_path):
    deployment, outcomes = Deployment(tmp_path), {}
    try:
        deployment.roll_out("2", trials=[SHADOW_OPTIONS, CANARY], report=outcomes.__setitem__)
        assert outcomes == dict.fromkeys(
            ("shadow", "canary"), "It is the first deployment, and has nothing to be compared with."
        )
        with pytest.raises(
            DeploymentError, match=r"at /other, and 2-.* takes them at /predict: a trial needs one path"
        ):
            deployment.roll_out("3", route="/other", trials=[CANARY])
    finally:
        stop(tmp_path)


@pytest.mark.thorough
def test_without_traffic_a_trial_ends_when_its_time_is_up_and_may_be_tried_again(deployment):
    options = Canary(look_seconds=0.1, max_seconds=0.3)
    for _ in range(2):
        with pytest.raises(DeploymentError, match=r"undecided after 0 requests .* the canary has no requests"):
            deployment.roll_out("2.0", trials=[options])


# Dagster's own call, in resolve_from_yaml.
@pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated")
def test_options_in_yaml_are_those_in_python_and_null_leaves_a_kind_out():
    def canary(text: str) -> Canary:
        return CanaryFields.resolve_from_yaml(text).canary()

    def shadow(text: str) -> Shadow:
        return ShadowFields.resolve_from_yaml(text).shadow()

    for read, options in ((canary, Canary), (shadow, Shadow)):
        assert read("{}") == options()
        assert read(json.dumps(dataclasses.asdict(options()))) == options(), "YAML has each option"
        assert read("slowdown: null") == options(slowdown=None)
    assert canary("{output_shift: null, steps: [0.2]}") == Canary(output_shift=None, steps=(0.2,))
    for wrong in ("steps: 0.5", "steps: [-0.1]", "steps: [a]", "step: [0.1]", "max_requests: 0", "slowdown: a", "true"):
        with pytest.raises((ValueError, dg.DagsterError)):
            canary(wrong)
    for useless in ("steps: []", "steps: [0.5, 0.1]", "steps: [1]", "max_requests: 100", "error_rate: true"):
        with pytest.raises(dg.DagsterInvalidDefinitionError, match=useless.partition(":")[0]):
            canary(useless)


class _Packages(SmallPackages):
    """The small tool as a resource."""


@pytest.mark.thorough
def test_the_asset_records_both_trials_as_checks_whatever_they_say(tmp_path):
    version, key = tmp_path / "version", dg.AssetKey("package")
    port = Deployment(tmp_path).port

    @dg.asset
    def package() -> dg.MaterializeResult:
        number = version.read_text()
        record = Package(tool="small", tag=f"small:{number}", home="none", model_name="small", model_version=number)
        return dg.MaterializeResult(metadata=record.to_metadata())

    @dg.asset
    def golden() -> pd.DataFrame:
        return pd.DataFrame({"x": [1.0, 2.0]})

    def assets(**environment: str) -> list[dg.AssetsDefinition]:
        deployment = deployment_asset(
            package=key,
            golden_set="golden",
            state_dir=tmp_path / "serving",
            port=port,
            resource_key="small",
            shadow=SHADOW_OPTIONS,
            canary=CANARY,
            environment=environment,
        )
        return [package, golden, deployment]

    with dg.DagsterInstance.ephemeral() as instance:

        def run(number: str, **environment: str) -> dict[str, tuple[bool, str]]:
            version.write_text(number)
            result = dg.materialize(
                assets(**environment), resources={"small": _Packages()}, instance=instance, raise_on_error=False
            )
            evaluations = result.get_asset_check_evaluations()
            return {each.check_name: (each.passed, each.description or "") for each in evaluations}

        try:
            first = run("2")
            assert all(passed and "first deployment" in why for passed, why in first.values()) and len(first) == 2
            small = Deployment(tmp_path / "serving", port)
            with requests(small) as answers:
                good = run("2.0")
                assert [passed for passed, _ in good.values()] == [True, True] and good["canary"][1].startswith("go: ")
                bad = run("2.00", **fault(crash=0.2))
                broken = run("2.000", **fault(crash=1))
            assert not bad["shadow"][0] and "worse by its errors" in bad["shadow"][1]
            assert bad["canary"] == (True, "No canary: the shadow went back.")
            assert broken == {
                kind: (True, f"No {kind}: the deployment failed before.") for kind in ("shadow", "canary")
            }
            assert {code for code, _ in answers} == {200, "ready"}
        finally:
            stop(tmp_path / "serving")
