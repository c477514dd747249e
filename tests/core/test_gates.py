"""Blocking checks hold in later runs, too."""

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run one job of a file

from dagster_mlops.core.gates import require_gates


def _world(passed: bool, *, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR, crash: bool = False):
    @dg.asset
    def candidate() -> None: ...

    @dg.asset_check(asset=candidate, blocking=True)
    def good_enough() -> dg.AssetCheckResult:
        if crash:
            raise RuntimeError("the check itself broke")
        return dg.AssetCheckResult(passed=passed, severity=severity)

    @dg.asset(deps=[candidate])
    def deployed(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=dict(require_gates(context, [candidate.key])))

    chosen = dg.AssetSelection.assets(candidate)
    return dg.Definitions(
        assets=[candidate, deployed],
        asset_checks=[good_enough],
        jobs=[
            dg.define_asset_job("build", chosen),
            dg.define_asset_job("build_unchecked", chosen.without_checks()),
            dg.define_asset_job("deploy", dg.AssetSelection.assets(deployed)),
        ],
        executor=dg.in_process_executor,
    )


PASSING = _world(passed=True)
FAILING = _world(passed=False)
WARNING = _world(passed=False, severity=dg.AssetCheckSeverity.WARN)
CRASHING = _world(passed=True, crash=True)


@pytest.fixture
def run():
    """Runs a job of one of this module's code locations as a launched run would, with the whole location loaded."""
    with dg.instance_for_test() as instance:

        def run(world: str, job: str) -> dg.JobExecutionResult:
            repository = ReconstructableRepository.for_file(__file__, world)
            with dg.execute_job(repository.get_reconstructable_job(job), instance) as result:
                return result

        yield run


def _refusal(result: dg.JobExecutionResult) -> str:
    assert not result.success
    [failure] = result.get_step_failure_events()
    error = failure.step_failure_data.error
    assert error
    return error.to_string()


def test_a_passed_check_lets_a_later_run_through_and_is_its_evidence(run):
    run("PASSING", "build")
    [event] = run("PASSING", "deploy").get_asset_materialization_events()
    assert event.materialization.metadata["candidate:good_enough"].value is True


def test_a_failed_check_stops_a_later_run_that_selects_only_the_guarded_asset(run):
    run("FAILING", "build")
    refusal = _refusal(run("FAILING", "deploy"))
    assert "GateError" in refusal and "candidate:good_enough (failed)" in refusal


def test_a_warning_does_not_stop(run):
    run("WARNING", "build")
    assert run("WARNING", "deploy").success


def test_a_check_that_crashed_is_no_pass(run):
    run("CRASHING", "build")
    assert "candidate:good_enough (did not finish)" in _refusal(run("CRASHING", "deploy"))


def test_a_check_that_never_ran_is_no_pass(run):
    assert "never evaluated" in _refusal(run("PASSING", "deploy"))


def test_a_pass_of_an_earlier_version_is_no_pass(run):
    run("PASSING", "build")
    run("PASSING", "build_unchecked")
    assert "judged an earlier materialization" in _refusal(run("PASSING", "deploy"))
