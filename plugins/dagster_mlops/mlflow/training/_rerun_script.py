"""Reruns one training step: a script for the run's recorded environment, which needs no more than Dagster and MLflow.

A request has ``step`` (the run's file), ``seeds`` (materializations to report of the assets that the step reads),
``files`` (Parquet files of assets whose own data are lost), ``tags`` of the Dagster run, ``scratch``, ``model`` (a
folder with the recorded model) and ``golden`` (a Parquet file, or empty).
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
    """Run the step, compare the models, and return the results."""
    step, scratch = task["step"], Path(task["scratch"])
    from dagster_mlops.mlflow import MlflowResource
    from dagster_mlops.provenance import TrainingRun

    uri = f"sqlite:///{scratch / 'mlflow.db'}"
    # The registry, too: by default MLflow takes the one in the code or the environment.
    resource = MlflowResource(tracking_uri=uri, registry_uri=uri, artifact_location=str(scratch / "artifacts"))
    defs = _definitions(step)
    key = dg.AssetKey.from_user_string(step["asset"])
    files = {dg.AssetKey.from_user_string(asset): Path(file) for asset, file in task["files"].items()}
    computed = [a for a in defs.assets or () if not (isinstance(a, dg.AssetsDefinition) and a.keys & files.keys())]
    rerun_defs = dg.Definitions(
        assets=[*computed, *(dg.AssetSpec(asset).with_io_manager_key("files") for asset in files)],
        resources={**(defs.resources or {}), "mlflow": resource, "files": Files(files)},
        loggers=defs.loggers,
        executor=dg.in_process_executor,
    )
    job = rerun_defs.resolve_implicit_global_asset_job_def()
    op = rerun_defs.resolve_assets_def(key).op.name
    config: dict[str, Any] = {"ops": {op: {"config": step["config"]}}} if step["config"] else {}
    if not defs.loggers:
        config["loggers"] = {"console": {"config": {"log_level": "INFO"}}}
    (scratch / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.local_temp(str(scratch)) as instance:
        for seed in task["seeds"]:
            metadata = {name: dg.MetadataValue.json(value) for name, value in seed["metadata"].items()}
            asset = dg.AssetKey.from_user_string(seed["asset"])
            event = dg.AssetMaterialization(asset, partition=seed["partition"] or None, metadata=metadata)
            instance.report_runless_asset_event(event)
        _add_partitions(instance, rerun_defs, {step["asset"]: [step["partition"]]}, task["seeds"])
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
    results: dict[str, Any] = {"run": record.to_dict(), "metrics": run.data.metrics, "params": run.data.params}
    packages = _local(str(run.info.artifact_uri)) / "code" / "environment.txt"
    if packages.is_file():
        results["packages"] = packages.read_text()
    query = f"source_run_id='{record.run_id}'"
    logged = client.search_logged_models(experiment_ids=[run.info.experiment_id], filter_string=query)
    [model] = [model for model in logged if str(model.status) == "READY"]
    recorded, rerun = Path(task["model"]), _local(str(model.artifact_location))
    try:
        comparison = _compare(recorded, rerun, task["golden"])
    except Exception as error:  # noqa: BLE001 - a model may raise anything: then nothing was compared
        comparison = {"problem": f"{type(error).__name__}: {error}"[:500]}
    results["models"] = {"files": {"then": _digests(recorded), "now": _digests(rerun)}, **comparison}
    return json.loads(json.dumps(results, default=str))


class Files(dg.IOManager):
    """Reads assets from Parquet files, as pandas dataframes unless the step asks for Arrow or Polars."""

    def __init__(self, files: dict[dg.AssetKey, Path]) -> None:
        self.files = files

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        raise NotImplementedError("these assets are only read")

    def load_input(self, context: dg.InputContext) -> Any:
        file, kind = self.files[context.asset_key], context.dagster_type.typing_type
        library = getattr(kind, "__module__", "").partition(".")[0]
        if library == "polars":
            import polars

            return (polars.scan_parquet if kind is polars.LazyFrame else polars.read_parquet)(file)
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(file)
        return table if library == "pyarrow" else table.to_pandas()


def _add_partitions(
    instance: dg.DagsterInstance, defs: dg.Definitions, read: dict[str, list[str]], seeds: list[dict[str, Any]]
) -> None:
    """Add the dynamic partitions of the step, and of the assets it reads, which exist in an instance only."""
    for seed in seeds:
        read.setdefault(seed["asset"], []).append(seed["partition"])
    graph = defs.resolve_asset_graph()
    for asset, partitions in read.items():
        key = dg.AssetKey.from_user_string(asset)
        partitions_def = graph.get(key).partitions_def if graph.has(key) else None
        for partition in filter(None, partitions):
            dimensions = [(partitions_def, partition)]
            if isinstance(partitions_def, dg.MultiPartitionsDefinition):
                keys = partitions_def.get_partition_key_from_str(partition).keys_by_dimension
                dimensions = [(d.partitions_def, keys[d.name]) for d in partitions_def.partitions_defs]
            for definition, name in dimensions:
                if isinstance(definition, dg.DynamicPartitionsDefinition) and definition.name:
                    instance.add_dynamic_partitions(definition.name, [name])


def _definitions(step: dict[str, Any]) -> dg.Definitions:
    """The recorded code location, loaded with the recorded working directory and import path in this checkout."""
    location, code, top = step["location"], step["code"], Path.cwd()
    os.chdir(top / code.get("cwd", "."))
    roots = [str(top / root) for root in code.get("path", ())]
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
        return dg.load_defs(module)  # a project's folder of definitions, with all files and components
    defs = getattr(module, name, None)
    if callable(defs) and not isinstance(defs, dg.GraphDefinition | dg.JobDefinition):
        defs = defs()  # @dg.definitions
    if not isinstance(defs, dg.Definitions):
        # A location of bare assets or jobs, or one that names a job of a module with definitions.
        module_defs = (value for value in vars(module).values() if isinstance(value, dg.Definitions))
        defs = next(module_defs, None) or dg.load_definitions_from_module(module)
    return defs


def _compare(recorded: Path, rerun: Path, golden: str) -> dict[str, Any]:
    """The difference between the predictions of two models for the same rows."""
    import mlflow
    import pandas as pd

    old, new = mlflow.pyfunc.load_model(str(recorded)), mlflow.pyfunc.load_model(str(rerun))
    example: Any = pd.read_parquet(golden) if golden else old.input_example
    if example is None or not len(example):
        return {"problem": "no rows to compare on: name some with --golden"}
    schema = old.metadata.get_input_schema()
    if golden and schema is not None and schema.has_input_names():
        example = example[schema.input_names()]  # without labels and predictions beside them
    return {"rows": len(example), **_difference(_predictions(old, example), _predictions(new, example))}


def _predictions(model: Any, rows: Any) -> Any:
    """A model's predictions for rows, as a frame."""
    import numpy as np
    import pandas as pd

    predictions = model.predict(rows)
    if isinstance(predictions, pd.DataFrame | pd.Series | dict):
        return pd.DataFrame(predictions)
    array = np.asarray(predictions.todense() if hasattr(predictions, "todense") else predictions)
    return pd.DataFrame(array.reshape(len(array), -1))


def _difference(left: Any, right: Any) -> dict[str, Any]:
    """The largest difference of numbers, relative to the largest in their column, and the count of others."""
    import numpy as np
    from pandas.api.types import is_numeric_dtype

    if left.shape != right.shape or list(left.columns) != list(right.columns):
        return {"largest_difference": None, "others": left.size}
    largest, other_count = 0.0, 0
    for name in left.columns:
        if is_numeric_dtype(left[name]) and is_numeric_dtype(right[name]):
            old, new = (frame[name].to_numpy("float64", na_value=np.nan) for frame in (left, right))
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            if not same.all():
                apart = np.abs(old - new)[~same].max()
                scale = np.abs(old[np.isfinite(old)]).max(initial=0.0)
                # NaN where one of them has no number; no scale where all were zero.
                largest = max(largest, float(apart / scale) if np.isfinite(apart) and scale else float("inf"))
        else:
            other_count += sum(str(old) != str(new) for old, new in zip(left[name], right[name], strict=True))
    return {"largest_difference": largest, "others": other_count}


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a model, without those that MLflow adds, which hold ids and times."""
    around = {"MLmodel", "registered_model_meta", "conda.yaml", "python_env.yaml", "requirements.txt"}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in around]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))
