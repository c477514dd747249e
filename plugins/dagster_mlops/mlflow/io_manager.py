"""Stores the model that an asset returns as a version in MLflow's registry, and loads it for the assets downstream."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg

from dagster_mlops.core.asset_records import is_rerun, latest_records, note_loaded
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_loading import DIGEST, FORMAT
from dagster_mlops.errors import ModelVersionError, TrainingRunError
from dagster_mlops.mlflow.metadata_keys import REGISTERED_AS
from dagster_mlops.mlflow.models.loading import find_version, load_version
from dagster_mlops.mlflow.models.log import FittedModel, log_model
from dagster_mlops.mlflow.registry.versions import logged_model_id
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.training.run_facts import run_facts
from dagster_mlops.mlflow.training.step import Training, train_step
from dagster_mlops.provenance import NAMESPACE, ModelVersion

"""The asset metadata key that names the registered model; by default the asset key, with dots."""
MODEL = "mlflow/model"
"""The metadata key of an input, or of an asset that nobody materializes here: ``name@alias`` or ``name/version``."""
PARTITION = f"{NAMESPACE}.dagster_partition"
"""The tag of a model version that says which partition it is of."""


class MlflowModelIOManager(dg.IOManager):
    """Logs and registers the :class:`FittedModel` that an asset returns; loads the version that Dagster knows of.

    An input is what the argument's annotation says: the model itself (``RandomForestClassifier``, or nothing),
    ``mlflow.pyfunc.PyFuncModel``, the :class:`ModelVersion` record, or ``dict[str, …]`` by partition. It is the
    version of the asset's newest materialization, or of exactly the partition. The metadata ``mlflow/model`` of the
    input, or of an external asset, names another:
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

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not context.has_asset_key:
            raise dg.Failure(
                f"{context.name} of op {context.op_def.name} is no asset, after which a model is named. Make "
                "an asset of it, or log the model inside of a training_asset.",
                allow_retries=False,
            )
        asset = context.asset_key.to_user_string()
        if not isinstance(obj, FittedModel):
            raise dg.Failure(
                f"{asset} returned {type(obj).__name__}. Return FittedModel(model, X): MLflow needs rows that the "
                "model is called with, to say how its input looks (dagster_mlops.mlflow.models).",
                allow_retries=False,
            )
        partitions = context.asset_partition_keys if context.has_asset_partitions else []
        if len(partitions) > 1:
            raise dg.Failure(
                f"{asset} computes {len(partitions)} partitions in one run, but each is a model version of its own. "
                "Give the asset backfill_policy=dg.BackfillPolicy.multi_run(1).",
                allow_retries=False,
            )
        # Dagster sets no public way to the executing asset's context from an IO manager but this one.
        step = dg.AssetExecutionContext.get()
        if len(step.assets_def.keys) > 1:
            raise dg.Failure(
                f"{asset} is one of {len(step.assets_def.keys)} outputs of one step, and an MLflow run is of one. Give "
                "each model an asset of its own, with what they share as an asset before them.",
                allow_retries=False,
            )
        name = registered_name(context.asset_key, context.definition_metadata)
        function = getattr(step.op_def.compute_fn, "decorated_fn", None) or type(self).handle_output
        facts = run_facts(
            step,
            self.mlflow,
            experiment=self.experiment or self.mlflow.experiment,
            seed=0,
            deterministic=False,
            function=inspect.unwrap(function),
            registered_model_name=name,
        )
        # The asset's function ran before, and whether it seeded anything is not known.
        tags = {key: value for key, value in facts.tags.items() if key != f"{NAMESPACE}.seed"}
        facts = dataclasses.replace(facts, tags=tags, record=dataclasses.replace(facts.record, seed=None))

        def store() -> None:
            mlflow = extra("mlflow")
            mlflow.log_params(dict(obj.params))
            mlflow.log_metrics(dict(obj.metrics))
            log_model(obj.model, obj.example, **{"trust": self.trust, **obj.options})

        training = Training(
            registered_model_name=name, experiment=self.experiment, seed=0, deterministic=False, system_metrics=False
        )
        try:
            result = train_step(store, step, self.mlflow, training, facts)
        except TrainingRunError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
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
            # The step's cache of data versions is what the materialization event, written after this method, takes its
            # version from. An IO manager has no public way to say it.
            context.step_context.set_data_version(context.asset_key, result.data_version)

    def load_input(self, context: dg.InputContext) -> Any:
        asset, kind = context.asset_key.to_user_string(), _not_optional(context.dagster_type.typing_type)
        by_partition = typing.get_origin(kind) in (dict, Mapping) or kind is dict
        if not context.has_asset_partitions:
            if by_partition:
                raise ModelVersionError(f"{asset} is one model, not one by partition. Annotate the input as the model.")
            return self._load(context, "", kind)
        partitions = context.asset_partition_keys
        if by_partition:
            [_, kind] = typing.get_args(kind) or (str, Any)
            return {partition: self._load(context, partition, kind) for partition in partitions}
        if len(partitions) > 1:
            raise ModelVersionError(
                f"{asset} has {len(partitions)} partitions here, each a model. Annotate the input as dict[str, …], or "
                "map one partition with dg.AssetIn(partition_mapping=…)."
            )
        # None comes before the first, where a training begins with the model of the partition before.
        return self._load(context, partitions[0], kind) if partitions else None

    def _load(self, context: dg.InputContext, partition: str, kind: Any) -> Any:
        asset = context.asset_key.to_user_string() + (f" partition {partition}" if partition else "")
        upstream = context.upstream_output.definition_metadata if context.upstream_output else {}
        known = latest_records(context.instance, context.asset_key, [partition] if partition else None)
        named = (context.definition_metadata or {}).get(MODEL) or (upstream or {}).get(MODEL)
        again = is_rerun(context)
        if named and not again:
            record = find_version(self.mlflow, str(getattr(named, "value", named)))
            note_loaded(context, record)
        else:
            record = next((record for record in known if isinstance(record, ModelVersion)), None)
            if record is None:
                raise ModelVersionError(
                    f"{asset} has no model version that Dagster knows of. Materialize it, or name a version in the "
                    f"input's metadata: {MODEL!r}: 'name@alias'."
                )
            note_loaded(context, *known)
        if kind is ModelVersion:
            return record
        pyfunc = getattr(kind, "__module__", "").startswith("mlflow.pyfunc") and kind.__name__ == "PyFuncModel"
        # A training that is run again has a registry of its own, without the versions of then.
        at = record.tracking_uri
        held = MlflowResource(tracking_uri=at, registry_uri=at) if again else self.mlflow
        loaded = load_version(held, record, pyfunc=pyfunc, allow_pickle=self.allow_pickle, trust=self.trust)
        says = loaded.to_metadata()
        context.log.info(f"Loaded {asset}: {', '.join(f'{key} {value}' for key, value in says.items())}")
        if not context.has_asset_partitions or len(context.asset_partition_keys) == 1:
            context.add_input_metadata(says)  # Dagster takes it for one partition only
        return loaded.model


@dg.io_manager(
    required_resource_keys={"mlflow"},
    config_schema={
        "experiment": dg.Field(str, is_required=False, description="Experiment of the runs; default: the resource's."),
        "allow_pickle": dg.Field(
            bool, default_value=False, description="Load formats that may run code of whoever could write them."
        ),
        "trust": dg.Field([str], default_value=[], description="Packages or types of yours that models may hold."),
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
    """The registered model of an asset: what its metadata says, or its key. MLflow takes no slash and no colon.

    >>> registered_name(dg.AssetKey(["flights", "arrival:delay"]))
    'flights.arrival%3Adelay'
    """
    named = (metadata or {}).get(REGISTERED_AS)
    return str(getattr(named, "value", named)) if named else ".".join(quote(part, safe=" ") for part in key.path)


def _not_optional(kind: Any) -> Any:
    """What a type is when it is not None.

    >>> _not_optional(str | None), _not_optional(int)
    (<class 'str'>, <class 'int'>)
    """
    given = [one for one in typing.get_args(kind) if one is not types.NoneType]
    return given[0] if typing.get_origin(kind) in (typing.Union, types.UnionType) and len(given) == 1 else kind
