"""Fails when Dagster has a public name for one that we take from its inside."""

import dagster as dg
import pytest

from dagster_mlops.core import upstream


@pytest.mark.parametrize("name", ["CheckError", "AssetGraph", "AssetCheckExecutionRecord"])
def test_dagster_has_no_public_name(name):
    assert not hasattr(dg, name), f"use dg.{name}, and drop it from core/upstream.py"


def test_dagster_does_not_tell_the_names_that_it_takes_for_no_asset():
    assert not {"DISALLOWED_NAMES", "RESERVED_NAMES"} & set(dir(dg)), f"use it in place of {upstream.reserved_names}"
    for name in ("type", "conf"):
        assert name in upstream.reserved_names()
        with pytest.raises(dg.DagsterInvalidDefinitionError, match=name):
            dg.asset(name=name)(lambda: None)


def test_dagster_makes_two_instances_in_memory_to_load_a_value(instance_count):
    assert instance_count(lambda context: context.load_asset_value(KEY)) == 2, f"drop {upstream.loaded_value}"
    assert instance_count(lambda context: upstream.loaded_value(context, KEY)) == 0
    # Other code in the same process keeps what Dagster does.
    assert instance_count(lambda context: context.load_asset_value(KEY)) == 2
    assert instance_count(lambda context: dg.build_output_context()) == 1


def test_dagster_has_no_public_name_for_what_an_evaluation_has_judged():
    names = [name for name in dir(dg) if "TargetMaterialization" in name]
    assert not names, f"use it in place of {upstream.target_of}"

    @dg.asset
    def numbers():
        return 7

    with dg.DagsterInstance.ephemeral() as instance:
        assert upstream.target_of(instance, KEY) is None
        run = dg.materialize([numbers], instance=instance)
        target = upstream.target_of(instance, KEY)
    assert target.run_id == run.run_id and target.storage_id > 0


KEY = dg.AssetKey("numbers")


@pytest.fixture
def instance_count(monkeypatch, tmp_path):
    """The number of instances in memory that a function of a step's context makes; the value it loads is checked."""
    ephemeral, made = dg.DagsterInstance.ephemeral, []

    def counted(*arguments, **options):
        made.append(1)
        return ephemeral(*arguments, **options)

    def count(load):
        @dg.asset
        def numbers() -> int:
            return 7

        @dg.asset_check(asset=KEY)
        def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
            with monkeypatch.context() as patch:
                patch.setattr(dg.DagsterInstance, "ephemeral", counted)
                value = load(context.op_execution_context)
            return dg.AssetCheckResult(passed=value == 7 or isinstance(value, dg.OutputContext))

        made.clear()
        with ephemeral() as instance:
            resources = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}
            result = dg.materialize([numbers, check], instance=instance, resources=resources)
        assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
        return len(made)

    return count
