"""Reruns one training step: a script for the run's recorded environment, which needs no more than Dagster and MLflow.

A request has ``step`` (the run's file), ``seeds`` (materializations to report of the assets that the step reads),
``files`` (Parquet files of assets whose own data are lost), ``tags`` of the Dagster run, ``scratch``, ``model`` (a
folder with the recorded model), ``golden`` (a Parquet file of rows to compare on, or empty) and its name.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # before the imports, which warn first

import dagster as dg  # noqa: E402

_MOST_ROWS, _FEW = 1000, 100  # on which models are compared
_noted: dict[str, None] = {}  # files that were read while this process watched
_absent: set[str] = set()  # variables that the code has asked for, and that are not set


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Run the step and return the results; or those of another script beside this one, if the request names it.

    Also the ``reads``, files and addresses that no commit and no record versions, the variables that the code has
    asked for and that are ``absent``, and whether the kernel ``watched``.
    """
    top = Path.cwd()

    def work() -> list[Any]:
        if script := task.get("script"):
            _set_import_path(task["step"])
            with _watched():
                result = _beside(script)["answer"](task)
        else:
            with _examples() as examples:
                result = _rerun(task, examples)
        return [result, list(_noted), sorted(_absent)]

    (result, noted, absent_variables), seen = _beside("_syscalls_script.py")["run_watched"](work)
    reads, of_training = _unversioned(task, top, noted, seen or {}), result.get("reads", {})
    files = {**reads.get("files", {}), **of_training.get("files", {})}
    addresses = list(dict.fromkeys([*of_training.get("addresses", ()), *reads.get("addresses", ())]))
    facts = {**reads, **of_training, "files": files, "addresses": addresses}
    return {**result, "reads": facts, "watched": seen is not None, "absent": absent_variables}


def _beside(name: str) -> dict[str, Any]:
    """The names of a module beside this script, which may be newer than the one in this environment."""
    return runpy.run_path(str(Path(__file__).with_name(name)))


@contextmanager
def _watched() -> Iterator[None]:
    module = _beside("reads.py")
    with module["watched_reads"]() as reads:
        yield
    _noted.update(reads.files)
    names = {name for name in reads.variables if isinstance(name, str) and not module["_NOT_NAMED"].search(name)}
    _absent.update(names - {*os.environ})


def _unversioned(task: dict[str, Any], top: Path, noted: list[str], seen: dict[str, list[str]]) -> dict[str, Any]:
    """The reads that this process has noted and that the kernel has `seen`, without those that have a version."""
    from dagster_mlops.core.code_state import code_state
    from dagster_mlops.provenance import Dataset, ModelVersion, Record

    module, step = _beside("reads.py"), task["step"]
    records = [Record.from_dict(stored) for read in step.get("reads", ()) for stored in read["records"]]
    paths = [task.get(name, "") for name in ("scratch", "model", "golden", "rows")]
    paths += [*task.get("files", {}).values(), str(Path(task["save"]).parent) if "save" in task else ""]
    reads = module["Reads"](files=dict.fromkeys([*seen.get("files", ()), *noted]))
    reads.addresses = dict.fromkeys(seen.get("addresses", ()))
    if step["seed"] is None and "script" not in task:  # the watch has seen its IO managers at work, too
        models = [record for record in records if isinstance(record, ModelVersion)]
        stored = [
            str(folder) for name in reads.files for folder in Path(name).parents if (folder / "MLmodel").is_file()
        ]
        paths += [*(record.tracking_uri.removeprefix("sqlite:///") for record in models), *(stored if models else ())]
        reads.addresses = {}
    inputs = [record for record in records if isinstance(record, Dataset)]
    untracked: Any = {"untracked": "all"} if _kept(step) == "all" and _takes(code_state, "untracked") else {}
    return module["unversioned"](reads, code_state(top, **untracked), inputs, filter(None, paths))


def _kept(step: dict[str, Any]) -> str:
    """The untracked files that the run has kept; one of an older version has kept all."""
    return step.get("code", {}).get("uncommitted", "all")


def _takes(function: Callable[..., Any], argument: str) -> bool:
    """True for a function with this argument, which the library of this environment may not have yet."""
    return argument in inspect.signature(function).parameters


def _rerun(task: dict[str, Any], examples: list[Any]) -> dict[str, Any]:
    step, scratch, top = task["step"], Path(task["scratch"]), str(Path.cwd())
    from dagster_mlops.mlflow import MlflowResource
    from dagster_mlops.provenance import TrainingRun

    uri = f"sqlite:///{scratch / 'mlflow.db'}"
    # The registry, too: by default MLflow takes the one in the code or the environment.
    options: Any = {"uncommitted_code": _kept(step)} if _takes(MlflowResource, "uncommitted_code") else {}
    resource = MlflowResource(
        tracking_uri=uri, registry_uri=uri, artifact_location=str(scratch / "artifacts"), **options
    )
    with _watched():
        defs = _definitions(step)
    key = dg.AssetKey.from_user_string(step["asset"])
    files = {dg.AssetKey.from_user_string(asset): Path(file) for asset, file in task["files"].items()}
    resources = _watched_resources(defs, key)
    computed = [a for a in defs.assets or () if not (isinstance(a, dg.AssetsDefinition) and a.keys & files.keys())]
    rerun_defs = dg.Definitions(
        assets=[*computed, *(dg.AssetSpec(asset).with_io_manager_key("files") for asset in files)],
        resources={**resources, "mlflow": resource, "files": Files(files)},
        loggers=defs.loggers,
        executor=dg.in_process_executor,
    )
    job = rerun_defs.resolve_implicit_global_asset_job_def()
    op = rerun_defs.resolve_assets_def(key).op.name
    config: dict[str, Any] = {"ops": {op: {"config": step["config"]}}} if step["config"] else {}
    if step.get("resources"):
        config["resources"] = step["resources"]
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
        # The function of a returned model runs before MLflow's part of the step, which watches a training.
        with nullcontext() if step["seed"] is not None else _watched():
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
    # A param may be a path in the checkout, which is elsewhere now.
    params = {name: value.replace(top, step["code"].get("toplevel", top)) for name, value in run.data.params.items()}
    results: dict[str, Any] = {"run": record.to_dict(), "metrics": run.data.metrics, "params": params}
    for name, file in {"packages": "environment.txt", "reads": "reads.json"}.items():
        path = _local(str(run.info.artifact_uri)) / "code" / file
        if path.is_file():
            results[name] = json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
    query = f"source_run_id='{record.run_id}'"
    logged = client.search_logged_models(experiment_ids=[run.info.experiment_id], filter_string=query)
    model_id = run.data.tags.get("dagster_mlops.trained")
    [model] = [model for model in logged if str(model.status) == "READY" and model_id in (None, model.model_id)]
    recorded, rerun = Path(task["model"]), _local(str(model.artifact_location))
    files = {"then": _digests(recorded), "now": _digests(rerun)}
    results["models"] = {"files": files, "rerun": str(rerun), **_changed_parts(recorded, rerun)}
    try:
        rows = _rows(task, examples, lambda: _inputs(rerun_defs, step, task["seeds"], scratch))
    except Exception as error:  # noqa: BLE001 - the rows may not fit: then nothing is compared
        rows, results["models"]["problem"] = {}, f"{type(error).__name__}: {error}"[:500]
    for number, (source, content) in enumerate(rows.items()):
        file = scratch / f"rows{number}.pickle"
        file.write_bytes(pickle.dumps(content))
        results["models"].setdefault("rows_files", []).append([source, str(file)])
    return json.loads(json.dumps(results, default=str))


def _watched_resources(defs: dg.Definitions, asset: dg.AssetKey) -> dict[str, Any]:
    """The resources, of which those of the training's function are watched as they start: they may read or connect."""
    resources = dict(defs.resources or {})
    waiting, visited = [*defs.resolve_assets_def(asset).op.required_resource_keys], {"mlflow"}
    while waiting:
        if (name := waiting.pop()) in visited or name not in resources:
            continue
        visited.add(name)
        resource = resources[name]
        if type(resource).__module__.startswith("dagster_mlops."):
            continue
        if hasattr(resource, "get_resource_definition"):
            resource = resource.get_resource_definition()
        if isinstance(resource, dg.ResourceDefinition) and not isinstance(resource, dg.IOManagerDefinition):
            waiting += resource.required_resource_keys
            resources[name] = _watched_resource(resource)
    return resources


def _watched_resource(resource: dg.ResourceDefinition) -> dg.ResourceDefinition:
    """The same resource, whose function is watched until it returns or yields its value."""
    function: Any = resource.resource_fn
    takes_context = bool(inspect.signature(function).parameters)

    def start(context: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            with _watched():
                value = function(context) if takes_context else function()
                if inspect.isgenerator(value):
                    generator = value
                    value = stack.enter_context(contextmanager(lambda: generator)())
                elif isinstance(value, ContextDecorator):
                    value = stack.enter_context(value)  # pyright: ignore[reportArgumentType]
            yield value

    needed = set(resource.required_resource_keys)
    return dg.ResourceDefinition(start, config_schema=resource.config_schema, required_resource_keys=needed)


def _inputs(defs: dg.Definitions, step: dict[str, Any], seeds: list[dict[str, Any]], scratch: Path) -> Iterator[Any]:
    """The frames that the step has loaded, once more; those that load as something else are left out."""
    partitions = {seed["asset"]: seed["partition"] for seed in seeds}
    with dg.DagsterInstance.from_config(str(scratch)) as instance:
        for read in step.get("reads", ()):
            if read["loaded"] and read["records"]:
                asset = dg.AssetKey.from_user_string(read["asset"])
                partition = partitions.get(read["asset"]) or None
                try:
                    yield defs.load_asset_value(asset, instance=instance, partition_key=partition)
                except Exception:  # noqa: BLE001 - an IO manager may need the step's own annotation
                    continue


def _set_import_path(step: dict[str, Any]) -> None:
    location, code, top = step["location"], step["code"], Path.cwd()
    os.chdir(top / code.get("cwd", "."))
    roots = [str(top / root) for root in code.get("path", ())]
    beside = [str((top / location["python_file"]).parent)] if "python_file" in location else []
    sys.path[:0] = [str(top / location.get("working_directory", ".")), *roots, *beside]
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)  # for processes that the training starts


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
    location, top = step["location"], Path.cwd()
    _set_import_path(step)
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


def _rows(task: dict[str, Any], examples: list[Any], load: Callable[[], Iterator[Any]]) -> dict[str, Any]:
    """The inputs on which the recorded and the new model can be compared, best first, by where they come from.

    Those that were given, else those from which the training inferred the signature of its model, or its own inputs if
    they have all columns; and the model's input example.
    """
    import mlflow.models
    import pandas as pd

    recorded = mlflow.models.Model.load(task["model"])
    schema = recorded.get_input_schema()
    names = schema.input_names() if schema is not None and schema.has_input_names() else []
    if task["golden"]:
        frame = pd.read_parquet(task["golden"])
        return {task.get("golden_name", "given rows"): frame[names] if names else frame}  # without labels beside them
    example: Any = recorded.load_input_example(task["model"])
    rows = {} if example is None or not len(example) else {"input example": example}
    if schema is None:
        return rows
    if names:
        examples = [frame[names] for frame in examples if set(names) <= set(getattr(frame, "columns", ()))]
    else:
        shape = getattr(example, "shape", (0,))[1:]
        examples = [e for e in examples if type(e) is type(example) and e.shape[1:] == shape]
    if names and max(map(len, examples), default=0) < _FEW:
        examples += [_spread(frame[names]) for frame in load() if set(names) <= set(getattr(frame, "columns", ()))]
    most = max(examples, key=len, default=None)
    return rows if most is None or len(most) < len(rows.get("input example", ())) else {"training input": most, **rows}


@contextmanager
def _examples() -> Iterator[list[Any]]:
    """The inputs from which signatures are inferred in the block, as rows spread over each."""
    import mlflow.models

    places: list[Any] = [mlflow.models, importlib.import_module("mlflow.models.signature")]
    infer, seen = mlflow.models.infer_signature, []

    def infer_signature(model_input: Any = None, *arguments: Any, **options: Any) -> Any:
        if hasattr(model_input, "shape") and len(model_input):
            seen.append(_spread(model_input))
        return infer(model_input, *arguments, **options)

    for place in places:  # before the training's code imports it
        place.infer_signature = infer_signature
    try:
        yield seen
    finally:
        for place in places:
            place.infer_signature = infer


def _spread(rows: Any) -> Any:
    """At most `_MOST_ROWS` rows at equal distances, from the first to the last."""
    import numpy as np

    if len(rows) <= _MOST_ROWS:
        return rows.copy()
    positions = np.linspace(0, len(rows) - 1, _MOST_ROWS).round().astype(int)
    return rows.iloc[positions] if hasattr(rows, "iloc") else rows[positions]


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a model, without those that MLflow adds, which hold ids and times."""
    around = {"MLmodel", "registered_model_meta", "conda.yaml", "python_env.yaml", "requirements.txt"}
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    stored = {name: file for name, file in files.items() if name not in around and file.suffix != ".pyc"}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in stored.items()}


def _changed_parts(recorded: Path, rerun: Path) -> dict[str, list[str]]:
    """The ``settings`` in which the two models differ, and the files of ``code``, apart from its comments."""
    old, new = (dict(_settings(folder)) for folder in (recorded, rerun))
    # Another version of MLflow has other settings.
    same_mlflow = old.get("mlflow_version") == new.get("mlflow_version")
    names = old.keys() | new.keys() if same_mlflow else old.keys() & new.keys()
    before, after = ({str(file.relative_to(f)): _syntax(file) for file in f.rglob("*.py")} for f in (recorded, rerun))
    return {
        "settings": sorted(name for name in names - {"mlflow_version"} if old.get(name) != new.get(name)),
        "code": sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
    }


def _settings(folder: Path) -> Iterator[tuple[str, str]]:
    """The model's signature and flavours in its MLmodel file, by path, without places and versions."""
    import yaml

    content = yaml.safe_load((folder / "MLmodel").read_text())
    waiting = [(name, content.get(name)) for name in ("mlflow_version", "signature", "flavors")]
    while waiting:
        path, value = waiting.pop()
        last = path.rpartition(".")[2]
        if last in ("env", "uri") or (last.endswith("_version") and "." in path):
            continue
        if isinstance(value, dict):
            waiting += [(f"{path}.{name}", inner) for name, inner in value.items()]
        else:
            # In an order that depends on the process, where MLflow adds LightGBM's own types.
            yield path, str(sorted(value) if last == "skops_trusted_types" and isinstance(value, list) else value)


def _syntax(file: Path) -> str:
    try:
        return ast.dump(ast.parse(file.read_bytes()))
    except SyntaxError:
        return file.read_text(errors="replace")


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))
