"""Runs one training step again: a script for the environment of then, of which it asks no more than Dagster and MLflow.

A request has ``step`` (what the run kept), ``seeds`` (what Dagster shall know of the
assets that the step reads), ``files`` (Parquet files of assets whose own data are lost), ``tags`` of the Dagster run,
``scratch``, ``model`` (a folder with the model of then) and ``golden`` (a Parquet file, or empty).
"""

import hashlib
import importlib
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # before the imports, which warn first

import dagster as dg  # noqa: E402


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Run the step, compare the models, and say what came out."""
    step, scratch = task["step"], Path(task["scratch"])
    from dagster_mlops.mlflow import MlflowResource
    from dagster_mlops.provenance import TrainingRun

    uri = f"sqlite:///{scratch / 'mlflow.db'}"
    # The registry, too: of itself MLflow would take the one that the code or the environment names.
    resource = MlflowResource(tracking_uri=uri, registry_uri=uri, artifact_location=str(scratch / "artifacts"))
    defs = _definitions(step)
    key = dg.AssetKey.from_user_string(step["asset"])
    files = {dg.AssetKey.from_user_string(asset): Path(file) for asset, file in task["files"].items()}
    again = dg.Definitions(
        assets=[*_others(defs, files), *(dg.AssetSpec(lost).with_io_manager_key("files") for lost in files)],
        resources={**(defs.resources or {}), "mlflow": resource, "files": Files(files)},
        loggers=defs.loggers,
        executor=dg.in_process_executor,
    )
    job = again.resolve_implicit_global_asset_job_def()
    op = again.resolve_assets_def(key).op.name
    config: dict[str, Any] = {"ops": {op: {"config": step["config"]}}} if step["config"] else {}
    if not defs.loggers:
        config["loggers"] = {"console": {"config": {"log_level": "INFO"}}}
    (scratch / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.local_temp(str(scratch)) as instance:
        for seed in task["seeds"]:
            known = {name: dg.MetadataValue.json(value) for name, value in seed["metadata"].items()}
            made = dg.AssetMaterialization(
                dg.AssetKey.from_user_string(seed["asset"]), partition=seed["partition"] or None, metadata=known
            )
            instance.report_runless_asset_event(made)
        _know_partitions(instance, again, {step["asset"]: [step["partition"]]}, task["seeds"])
        ends = zip(("start", "end"), step.get("partition_range", ()), strict=False)
        ranged = {f"dagster/asset_partition_range_{name}": key for name, key in ends}
        result = job.execute_in_process(
            run_config=config,
            instance=instance,
            asset_selection=[key],
            partition_key=step["partition"] or None,
            tags={**ranged, **task["tags"]},
        )
    metadata = result.asset_materializations_for_node(op)[0].metadata
    record = TrainingRun.from_metadata(metadata)
    assert record is not None
    client = resource.client()
    run = client.get_run(record.run_id)
    found: dict[str, Any] = {
        "run": record.to_dict(),
        "metrics": dict(run.data.metrics),
        "params": dict(run.data.params),
    }
    listed = _local(str(run.info.artifact_uri)) / "code" / "environment.txt"
    if listed.is_file():
        found["packages"] = listed.read_text()
    logged = client.search_logged_models(
        experiment_ids=[run.info.experiment_id], filter_string=f"source_run_id='{record.run_id}'"
    )
    [model] = [model for model in logged if str(model.status) == "READY"]
    then, now = Path(task["model"]), _local(str(model.artifact_location))
    try:
        compared = _compare(then, now, task["golden"])
    except Exception as error:  # noqa: BLE001 - whatever a model raises when it is asked: nothing was compared
        compared = {"problem": f"{type(error).__name__}: {error}"[:500]}
    found["models"] = {"files": {"then": _digests(then), "now": _digests(now)}, **compared}
    return json.loads(json.dumps(found, default=str))


class Files(dg.IOManager):
    """Reads assets from Parquet files, as pandas dataframes unless the step asks for Arrow or Polars."""

    def __init__(self, files: dict[dg.AssetKey, Path]) -> None:
        self.files = files

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        raise NotImplementedError("what is read is not written")

    def load_input(self, context: dg.InputContext) -> Any:
        file, kind = self.files[context.asset_key], context.dagster_type.typing_type
        library = getattr(kind, "__module__", "").partition(".")[0]
        if library == "polars":
            import polars

            return (polars.scan_parquet if kind is polars.LazyFrame else polars.read_parquet)(file)
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(file)
        return table if library == "pyarrow" else table.to_pandas()


def _know_partitions(
    instance: dg.DagsterInstance, defs: dg.Definitions, read: dict[str, list[str]], seeds: list[dict[str, Any]]
) -> None:
    """Dynamic partitions exist in an instance only: those of the step, and of what it reads."""
    for seed in seeds:
        read.setdefault(seed["asset"], []).append(seed["partition"])
    graph = defs.resolve_asset_graph()
    for asset, partitions in read.items():
        key = dg.AssetKey.from_user_string(asset)
        whole = graph.get(key).partitions_def if graph.has(key) else None
        for partition in filter(None, partitions):
            parts = {"": (whole, partition)}
            if isinstance(whole, dg.MultiPartitionsDefinition):
                named = whole.get_partition_key_from_str(partition).keys_by_dimension
                parts = {d.name: (d.partitions_def, named[d.name]) for d in whole.partitions_defs}
            for definition, name in parts.values():
                if isinstance(definition, dg.DynamicPartitionsDefinition) and definition.name:
                    instance.add_dynamic_partitions(definition.name, [name])


def _others(defs: dg.Definitions, files: dict[dg.AssetKey, Path]) -> list[Any]:
    """The assets of the code location without those that are read from files."""
    return [
        asset
        for asset in defs.assets or ()
        if not (isinstance(asset, dg.AssetsDefinition) and asset.keys & files.keys())
    ]


def _definitions(step: dict[str, Any]) -> dg.Definitions:
    """The code location of then, in the working directory and with the import path of then, both in this checkout."""
    location, then, top = step["location"], step["code"], Path.cwd()
    os.chdir(top / then.get("cwd", "."))
    roots = [str(top / root) for root in then.get("path", ())]
    sys.path[:0] = [str(top / location.get("working_directory", ".")), *roots]
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)  # for processes that the training starts
    if "python_file" in location:
        file = top / location["python_file"]
        spec = importlib.util.spec_from_file_location(file.stem, file)  # named as Dagster names it
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(location["module"])
    name = location.get("fn_name") or location.get("attribute") or ""
    if not name:
        return dg.load_defs(module)  # the folder of a project's definitions, each file and component of it
    found = getattr(module, name, None)
    if callable(found) and not isinstance(found, dg.GraphDefinition | dg.JobDefinition):
        found = found()  # @dg.definitions
    if not isinstance(found, dg.Definitions):
        # A location of bare assets or jobs, or one that names a job of a module with definitions.
        held = [value for value in vars(module).values() if isinstance(value, dg.Definitions)]
        found = held[0] if held else dg.load_definitions_from_module(module)
    return found


def _compare(then: Path, now: Path, golden: str) -> dict[str, Any]:
    """How the predictions of the two models for the same rows differ."""
    import mlflow
    import pandas as pd

    old, new = mlflow.pyfunc.load_model(str(then)), mlflow.pyfunc.load_model(str(now))
    example: Any = pd.read_parquet(golden) if golden else old.input_example
    if example is None or not len(example):
        return {"problem": "no rows to compare on: name some with --golden"}
    schema = old.metadata.get_input_schema()
    if golden and schema is not None and schema.has_input_names():
        example = example[schema.input_names()]  # labels and predictions may lie beside them
    return {"rows": len(example), **_difference(_answers(old, example), _answers(new, example))}


def _answers(model: Any, rows: Any) -> Any:
    """What a model says to each row, as a frame."""
    import numpy as np
    import pandas as pd

    told = model.predict(rows)
    if isinstance(told, pd.DataFrame | pd.Series | dict):
        return pd.DataFrame(told)
    array = np.asarray(told.todense() if hasattr(told, "todense") else told)
    return pd.DataFrame(array.reshape(len(array), -1))


def _difference(then: Any, now: Any) -> dict[str, Any]:
    """The largest difference of numbers, in parts of the largest of its column, and how many other values differ."""
    import numpy as np
    from pandas.api.types import is_numeric_dtype

    if then.shape != now.shape or list(then.columns) != list(now.columns):
        return {"largest_difference": None, "others": then.size}
    largest, others = 0.0, 0
    for name in then.columns:
        if is_numeric_dtype(then[name]) and is_numeric_dtype(now[name]):
            old, new = (frame[name].to_numpy("float64", na_value=np.nan) for frame in (then, now))
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            if not same.all():
                apart = np.abs(old - new)[~same].max()
                scale = np.abs(old[np.isfinite(old)]).max(initial=0.0)
                # NaN where one of them has no number, and no scale where all were zero.
                largest = max(largest, float(apart / scale) if np.isfinite(apart) and scale else float("inf"))
        else:
            others += sum(str(one) != str(other) for one, other in zip(then[name], now[name], strict=True))
    return {"largest_difference": largest, "others": others}


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that make up a model; what MLflow writes around it carries ids and times."""
    around = {"MLmodel", "registered_model_meta", "conda.yaml", "python_env.yaml", "requirements.txt"}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in around]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))
