"""An IO manager that stores an asset's model as a version in MLflow's registry, and loads it for assets downstream."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core.asset_records import is_rerun, latest_records, note_loaded
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.model_loading import DIGEST, FORMAT
from dagster_mlops.errors import ModelVersionError, TrainingRunError
from dagster_mlops.mlflow.lazy import mlflow
from dagster_mlops.mlflow.metadata_keys import REGISTERED_AS
from dagster_mlops.mlflow.models.log import FittedModel, log_model
from dagster_mlops.mlflow.registry.models import find_version, load_version
from dagster_mlops.mlflow.registry.versions import logged_model_id
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.training.function import Training
from dagster_mlops.mlflow.training.step import train_step
from dagster_mlops.provenance import NAMESPACE, ModelVersion

MODEL = "mlflow/model"
"""Metadata key of an input, or of an external asset: ``name@alias`` or ``name/version``."""
PARTITION = f"{NAMESPACE}.dagster_partition"
"""Tag of a model version: its partition."""


class MlflowModelIOManager(dg.IOManager):
    """Logs and registers the :class:`FittedModel` that an asset returns; loads the version of its materialization.

    The argument's annotation decides what an input is: the model itself (``RandomForestClassifier``, or no annotation),
    ``mlflow.pyfunc.PyFuncModel``, the :class:`ModelVersion` record, or ``dict[str, …]`` by partition. It is the
    version of the asset's latest materialization, or of the partition's. The metadata ``mlflow/model`` of the
    input, or of an external asset, names another one:
    ``ins={"model": dg.AssetIn(metadata={"mlflow/model": "delay@champion"})}``.
    """

    def __init__(
        self,
        mlflow: MlflowResource,
        *,
        experiment: str | None = None,
        allow_pickle: bool = False,
        trust: Sequence[str] = (),
    ) -> None:
        self.mlflow = mlflow
        self.experiment = experiment
        self.allow_pickle = allow_pickle
        self.trust = tuple(trust)

    @not_retried(TrainingRunError)
    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not context.has_asset_key:
            raise TrainingRunError(
                f"{context.name} of op {context.op_def.name} is not an asset, and a model is named after one. Make it "
                "an asset, or log the model inside a training_asset."
            )
        asset = context.asset_key.to_user_string()
        if not isinstance(obj, FittedModel):
            raise TrainingRunError(
                f"{asset} returned {type(obj).__name__}. Return FittedModel(model, X): MLflow needs example "
                "rows for the signature of the model's input (dagster_mlops.mlflow.models)."
            )
        partitions = context.asset_partition_keys if context.has_asset_partitions else []
        if len(partitions) > 1:
            raise TrainingRunError(
                f"{asset} computes {len(partitions)} partitions in one run, but each needs its own model version. "
                "Give the asset backfill_policy=dg.BackfillPolicy.multi_run(1)."
            )
        # The only public way from an IO manager to the context of the asset that is being computed.
        step = dg.AssetExecutionContext.get()
        if len(step.assets_def.keys) > 1:
            raise TrainingRunError(
                f"{asset} is one of {len(step.assets_def.keys)} outputs of one step, but an MLflow run is of one. Make "
                "each model an asset of its own, and what they share an asset upstream of them."
            )
        name = registered_name(context.asset_key, context.definition_metadata)
        function = getattr(step.op_def.compute_fn, "decorated_fn", None) or type(self).handle_output

        def store() -> None:
            mlflow.log_params(dict(obj.params))
            mlflow.log_metrics(dict(obj.metrics))
            log_model(obj.model, obj.example, **{"trust": self.trust, **obj.options})

        # Without a seed: the asset's function ran before this, and may have used any.
        training = Training(function=function, registered_model_name=name, experiment=self.experiment)
        result = train_step(store, step, self.mlflow, training)
        metadata = dict(result.metadata or {})
        record = ModelVersion.from_metadata(metadata)
        assert record is not None
        client = self.mlflow.client()
        model_id = logged_model_id(client.get_model_version(name, record.version))
        stored = client.get_logged_model(model_id).tags if model_id else {}
        on_version = {PARTITION: record.dagster_partition, FORMAT: stored.get(FORMAT), DIGEST: stored.get(DIGEST)}
        for key, value in on_version.items():
            if value:
                client.set_model_version_tag(name, record.version, key, value)
        context.add_output_metadata(
            {**metadata, "mlflow/format": stored.get(FORMAT, ""), "mlflow/sha256": stored.get(DIGEST, "")}
        )
        if result.data_version:
            # The materialization event, written after this method, takes its data version from the step's cache. An IO
            # manager has no public way to set it.
            context.step_context.set_data_version(context.asset_key, result.data_version)

    def load_input(self, context: dg.InputContext) -> Any:
        asset, kind = context.asset_key.to_user_string(), _not_optional(context.dagster_type.typing_type)
        by_partition = typing.get_origin(kind) in (dict, Mapping) or kind is dict
        if not context.has_asset_partitions:
            if by_partition:
                raise ModelVersionError(f"{asset} has no partitions, it is one model. Annotate the input as that.")
            return self._load(context, "", kind)
        partitions = context.asset_partition_keys
        if by_partition:
            [_, kind] = typing.get_args(kind) or (str, Any)
            return {partition: self._load(context, partition, kind) for partition in partitions}
        if len(partitions) > 1:
            raise ModelVersionError(
                f"The input reads {len(partitions)} partitions of {asset}, each a model. Annotate it as dict[str, …], "
                "or map one partition with dg.AssetIn(partition_mapping=…)."
            )
        # The first partition of a training that starts from the previous partition's model has no input.
        return self._load(context, partitions[0], kind) if partitions else None

    def _load(self, context: dg.InputContext, partition: str, kind: Any) -> Any:
        asset = context.asset_key.to_user_string() + (f" partition {partition}" if partition else "")
        upstream = context.upstream_output.definition_metadata if context.upstream_output else {}
        records = latest_records(context.instance, context.asset_key, [partition] if partition else None)
        name = (context.definition_metadata or {}).get(MODEL) or (upstream or {}).get(MODEL)
        rerun = is_rerun(context)
        if name and not rerun:
            record = find_version(self.mlflow, str(getattr(name, "value", name)))
            note_loaded(context, record)
        else:
            record = next((record for record in records if isinstance(record, ModelVersion)), None)
            if record is None:
                raise ModelVersionError(
                    f"There is no model version on record for {asset}. Materialize it, or name a version in the "
                    f"input's metadata: {MODEL!r}: 'name@alias'."
                )
            note_loaded(context, *records)
        if kind is ModelVersion:
            return record
        pyfunc = getattr(kind, "__module__", "").startswith("mlflow.pyfunc") and kind.__name__ == "PyFuncModel"
        # A rerun of a training has a registry of its own, without the recorded versions.
        uri = record.tracking_uri
        registry = MlflowResource(tracking_uri=uri, registry_uri=uri) if rerun else self.mlflow
        loaded = load_version(registry, record, pyfunc=pyfunc, allow_pickle=self.allow_pickle, trust=self.trust)
        own_class = type(loaded.model)
        same_name = isinstance(kind, type) and (kind.__module__, kind.__qualname__) in {
            (cls.__module__, cls.__qualname__) for cls in own_class.__mro__
        }
        if same_name and not issubclass(own_class, kind):
            raise ModelVersionError(
                f"{record.name}/{record.version} brings its own {kind.__module__} (code_paths), which is not the one "
                f"imported here: its {kind.__qualname__} is another class. Annotate the input as Any to take it as "
                "it is, or train a version with today's code."
            )
        metadata = loaded.to_metadata()
        context.log.info(f"Loaded {asset}: {', '.join(f'{key} {value}' for key, value in metadata.items())}")
        if not context.has_asset_partitions or len(context.asset_partition_keys) == 1:
            context.add_input_metadata(metadata)  # Dagster accepts it for one partition only
        return loaded.model


@dg.io_manager(
    required_resource_keys={"mlflow"},
    config_schema={
        "experiment": dg.Field(str, is_required=False, description="Experiment of the runs; default: the resource's."),
        "allow_pickle": dg.Field(
            bool, default_value=False, description="Load formats that can run code which their writer put in."
        ),
        "trust": dg.Field([str], default_value=[], description="Your packages or types that models may hold."),
    },
)
def mlflow_model_io_manager(context: dg.InitResourceContext) -> MlflowModelIOManager:
    """The :class:`MlflowModelIOManager` of the resource ``mlflow``.

    dg.Definitions(
        assets=[...],
        resources={"mlflow": MlflowResource(...), "models": mlflow_model_io_manager.configured({"trust": ["shop"]})},
    )
    """
    return MlflowModelIOManager(context.resources.mlflow, **context.resource_config)


def registered_name(key: dg.AssetKey, metadata: Mapping[str, Any] | None = None) -> str:
    """The registered model of an asset: from its metadata, else its key. MLflow accepts no slash and no colon.

    >>> registered_name(dg.AssetKey(["flights", "arrival:delay"]))
    'flights.arrival%3Adelay'
    """
    name = (metadata or {}).get(REGISTERED_AS)
    return str(getattr(name, "value", name)) if name else ".".join(quote(part, safe=" ") for part in key.path)


def _not_optional(kind: Any) -> Any:
    """The type without its None.

    >>> _not_optional(str | None), _not_optional(int)
    (<class 'str'>, <class 'int'>)
    """
    members = [member for member in typing.get_args(kind) if member is not types.NoneType]
    return members[0] if typing.get_origin(kind) in (typing.Union, types.UnionType) and len(members) == 1 else kind
