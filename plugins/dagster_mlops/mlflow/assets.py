"""Training assets: the user's function trains with MLflow's own API, inside a run that is always closed."""

import functools
import inspect
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import runs
from dagster_mlops.mlflow.facts import RunFacts, run_facts
from dagster_mlops.mlflow.present import present_run
from dagster_mlops.mlflow.registry import register
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_CONTEXT_NAMES = {"context", "_context", "context_", "_"}
# Finding out a model's requirements takes MLflow about 11 s, logging the model itself half a second.
_SLOW_LOG_MODEL_S = 8.0


def training_asset(
    *, registered_model_name: str, experiment: str | None = None, seed: int = 0, **asset_options: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make an asset of a function that trains and logs one model with MLflow's own API.

        @training_asset(registered_model_name="arrival_delay", group_name="training")
        def arrival_delay_model(context: dg.AssetExecutionContext, training_set: pd.DataFrame) -> None:
            model = LogisticRegression().fit(training_set[FEATURES], training_set["late"])
            mlflow.log_metrics({"auc": ...})
            mlflow.sklearn.log_model(
                model, name="model", signature=infer_signature(...), input_example=training_set[FEATURES].head(3),
                pip_requirements=["scikit-learn==1.7.2"],
            )

    The MLflow run is open when the function starts, carries code, inputs, seed and Dagster run as tags, and is closed
    however the function ends. The model becomes a version of `registered_model_name`; aliases are left to promotion.
    The function returns nothing, or a :class:`dagster.MaterializeResult` whose metadata and check results are kept.

    `seed` seeds `random`, NumPy and, when already imported, torch. `experiment` overrides the resource's. Everything
    else that :func:`dagster.asset` takes (`ins`, `deps`, `partitions_def`, `retry_policy`, `op_tags`, …) is passed on.
    The resource key is ``mlflow``.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise dg.DagsterInvalidDefinitionError(
                f"{function.__name__} is a generator or coroutine; a training asset is a plain function. Return a "
                "MaterializeResult instead of yielding it."
            )
        parameters = list(inspect.signature(function).parameters.values())
        takes_context = bool(parameters) and parameters[0].name in _CONTEXT_NAMES
        takes_resource = any(parameter.name == "mlflow" for parameter in parameters)

        @functools.wraps(function)
        def train(context: dg.AssetExecutionContext, mlflow: MlflowResource, **inputs: Any) -> dg.MaterializeResult:
            arguments = {**inputs, "mlflow": mlflow} if takes_resource else inputs
            call = functools.partial(function, *[context][:takes_context], **arguments)
            facts = run_facts(
                context,
                mlflow,
                experiment=experiment or mlflow.experiment,
                seed=seed,
                function=function,
                registered_model_name=registered_model_name,
            )
            try:
                return _train(call, context, mlflow, registered_model_name, experiment, seed, facts)
            except TrainingRunError as error:
                # Training once more would break the same contract once more.
                raise dg.Failure(str(error), allow_retries=False) from error

        by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD
        # Dagster reads inputs, config and resources from the signature: the user's own, plus what this wrapper needs.
        own = [parameter.replace(kind=by_name) for parameter in parameters[takes_context:]]
        context_first = inspect.Parameter("context", by_name, annotation=dg.AssetExecutionContext)
        resource = inspect.Parameter("mlflow", by_name, annotation=MlflowResource)
        wanted = [context_first, *(parameter for parameter in own if parameter.name != "mlflow"), resource]
        train.__signature__ = inspect.Signature(wanted)  # pyright: ignore[reportAttributeAccessIssue]
        train.__annotations__ = {p.name: p.annotation for p in wanted if p.annotation is not p.empty}
        return dg.asset(**{**asset_options, "kinds": {"mlflow", *asset_options.get("kinds", ())}})(train)

    return decorate


def _train(
    call: Callable[[], Any],
    context: dg.AssetExecutionContext,
    resource: MlflowResource,
    registered_model_name: str,
    experiment: str | None,
    seed: int,
    facts: RunFacts,
) -> dg.MaterializeResult:
    # Tells the sensor which Dagster runs may leave an MLflow run behind.
    context.instance.add_run_tags(context.run.run_id, {runs.TRAINING_TAG: "true"})
    with resource.activate(experiment) as client:
        experiment_id = resource.experiment_id(client, experiment)
        for run_id in runs.close_orphans(client, context.instance, experiment_id, facts.tags[runs.TARGET]):
            context.log.warning(f"Closed MLflow run {run_id}, which a process that died had left running.")

        run = runs.find_run(client, context, experiment_id, facts.tags)
        trained = run is not None and _is_trained(run, context, facts.tags[runs.INPUTS])
        attempt = int(run.data.tags.get(runs.ATTEMPT, 0)) + 1 if run else 0
        run = run or runs.create_run(client, experiment_id, facts.name, facts.tags)
        run_id = run.info.run_id
        record, tags = facts.of_run(run_id, attempt)
        context.log.info(f"MLflow run {run_id} (attempt {attempt}) {resource.run_url(experiment_id, run_id)}")

        started = time.monotonic()
        result = None
        with _open(context, client, resource, run):
            for name in (runs.CLOSED, runs.TRAINED) if not trained else (runs.CLOSED,):
                if name in run.data.tags:
                    client.delete_tag(run_id, name)
            facts.log(client, run_id, tags)
            if trained:
                context.log.info("An earlier attempt has trained the model on the same code and inputs: it is taken.")
                model = client.get_logged_model(run.data.tags[runs.TRAINED])
            else:
                earlier = {model.model_id for model in runs.logged_models(client, run)}
                _seed(seed)
                result = _call(call)
                model = _the_model(context, [m for m in runs.logged_models(client, run) if m.model_id not in earlier])
                client.set_tag(run_id, runs.TRAINED, model.model_id)
            extra("mlflow").flush_async_logging()
            version = register(
                client, registered_model_name, model.model_id, client.get_run(run_id), record, facts.datasets
            )

        metadata, record = present_run(client, resource, client.get_run(run_id), record)
        metadata["mlflow/training_seconds"] = round(time.monotonic() - started, 3)
        version_url = resource.version_url(version.name, version.version)
    given = result if isinstance(result, dg.MaterializeResult) else dg.MaterializeResult()
    return dg.MaterializeResult(
        metadata={
            **record.to_metadata(),
            **version.to_metadata(),
            **metadata,
            **({"mlflow/version_url": dg.MetadataValue.url(version_url)} if version_url else {}),
            **(given.metadata or {}),
        },
        check_results=given.check_results,
        tags=given.tags,
        data_version=dg.DataVersion(f"{version.name}/{version.version}"),
    )


def _is_trained(run: "Run", context: dg.AssetExecutionContext, inputs_hash: str) -> bool:
    """Whether only recording is left to do; an asset with checks of its own must run to evaluate them."""
    same = run.data.tags.get(runs.INPUTS) == inputs_hash
    return same and runs.TRAINED in run.data.tags and not context.op_execution_context.selected_asset_check_keys


@contextmanager
def _open(
    context: dg.AssetExecutionContext, client: "MlflowClient", resource: MlflowResource, run: "Run"
) -> Iterator[None]:
    """Make the run MLflow's active one, and close it however the block ends."""
    try:
        # nested: a run that an asset of somebody else left open in this process shall not stop this one.
        extra("mlflow").start_run(run_id=run.info.run_id, nested=True)
        yield
    except BaseException as error:
        # Exception: the training failed. Anything else (Dagster's termination, Ctrl-C) is an interruption.
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        try:
            _deactivate(resource, run, status)
            runs.close_run(client, run, status, f"{type(error).__name__}: {error}")
        except (extra("mlflow.exceptions").MlflowException, OSError) as second:
            context.log.warning(f"MLflow run {run.info.run_id} could not be closed: {mask_credentials(str(second))}")
        raise
    _deactivate(resource, run, "FINISHED")
    client.set_terminated(run.info.run_id, "FINISHED")


def _deactivate(resource: MlflowResource, run: "Run", status: str) -> None:
    """Take the run, and what the function left open inside it, off MLflow's stack of active runs."""
    mlflow = extra("mlflow")
    mlflow.set_tracking_uri(resource.uri)  # the function may have pointed it elsewhere
    while (active := mlflow.active_run()) is not None:
        mlflow.end_run(status)
        if active.info.run_id == run.info.run_id:
            return


def _call(call: Callable[[], Any]) -> Any:
    try:
        result = call()
    except extra("mlflow.exceptions").MlflowException as error:
        if "skops_trusted_types" not in str(error):
            raise
        raise TrainingRunError(
            f"MLflow stores scikit-learn models with skops, which refuses types it does not know: {str(error)[:300]}\n"
            'Give log_model skops_trusted_types=[…] with the types named above, or serialization_format="cloudpickle".'
        ) from error
    if result is not None and not isinstance(result, dg.MaterializeResult):
        raise TrainingRunError(
            f"the training function returned {type(result).__name__}. Log the model with mlflow.<flavor>.log_model, "
            "and return nothing or a dagster.MaterializeResult."
        )
    return result


def _the_model(context: dg.AssetExecutionContext, logged: "Sequence[LoggedModel]") -> "LoggedModel":
    """The one model of the run, complete with signature and input example."""
    ready = [model for model in logged if str(model.status) == "READY"]
    if len(ready) != 1:
        found = ", ".join(f"{model.name} ({model.model_id})" for model in ready) or "none"
        raise TrainingRunError(
            f"a training run logs exactly one model, this one logged {len(ready)}: {found}. Call mlflow.<flavor>."
            'log_model(model, name="model", signature=…, input_example=…) once; with autolog, set log_models=False; '
            "log the models of a search in nested runs."
        )
    [model] = ready
    info = extra("mlflow.models").get_model_info(f"models:/{model.model_id}")
    missing = [
        *([] if info.signature else ["signature=infer_signature(X, predictions)"]),
        *([] if info.saved_input_example_info else ["input_example=X.head(3)"]),
    ]
    if missing:
        raise TrainingRunError(
            f"model {model.name} ({model.model_id}) cannot be served safely: it lacks what says how its input looks. "
            f"Add {' and '.join(missing)} to log_model."
        )
    seconds = (model.last_updated_timestamp - model.creation_timestamp) / 1000
    if seconds > _SLOW_LOG_MODEL_S:
        context.log.warning(
            f"log_model took {seconds:.1f} s, most of it to find out the model's requirements. Give it "
            "pip_requirements=[…] and it takes half a second."
        )
    return model


def _seed(seed: int) -> None:
    random.seed(seed)
    extra("numpy", extra="mlflow").random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
