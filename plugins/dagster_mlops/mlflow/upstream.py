"""All use of private names of MLflow (3.17) and Optuna (4.4 to 5), each with the public one that is missing.

`tests/mlflow/test_upstream.py` fails once there is one: then delete the function here.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import datetime
from functools import cache
from math import isnan, nan
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra

_take_answers: "ContextVar[Callable[[Path, Any], None] | None]" = ContextVar("take_answers", default=None)


@contextmanager
def active_experiment(experiment_id: str) -> Iterator[None]:
    """Make an experiment MLflow's active one inside the block.

    ``mlflow.set_experiment`` queries the server again, and the experiment before it can be neither read nor restored:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/fluent.py
    """
    fluent = _fluent()
    before = fluent._active_experiment_id
    fluent._active_experiment_id = experiment_id
    try:
        yield
    finally:
        fluent._active_experiment_id = before


def model_registry(client: Any) -> Any:
    """The registry that a client writes to, without the client's look at the whole model before each tag and alias.

    The client reads all versions of a model to learn that its name is not that of a prompt:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/client.py (``_raise_if_prompt``)
    """
    return client._get_registry_client()


def active_runs() -> list[Any]:
    """The stack of this thread's active runs, to be changed in place.

    ``mlflow.active_run`` shows only the top of it:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/fluent.py
    """
    return _fluent()._active_run_stack.get()


def active_runs_by_thread() -> list[list[Any]]:
    """The stacks of all threads: https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/thread_utils.py"""
    return [*_fluent()._active_run_stack.get_all_thread_values().values()]


@contextmanager
def run_for_threads_without(run: Any) -> Iterator[None]:
    """Let threads and forked processes that have no active run log to `run`.

    MLflow keeps the active run per thread, and begins a new one for what a thread without one logs:
    https://github.com/mlflow/mlflow/issues/3592
    """
    fluent = _fluent()
    start = fluent._get_or_start_run
    fluent._get_or_start_run = lambda: start() if active_runs() else run
    try:
        yield
    finally:
        fluent._get_or_start_run = start


@contextmanager
def settings_restored() -> Iterator[None]:
    """Restore at the end of the block what a training may set for the whole process: autologging, the active model, and
    the settings that MLflow keeps in environment variables.

    MLflow tells neither the settings of an integration nor those that wait for the import of a library:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/autologging_utils/__init__.py
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/import_hooks/__init__.py
    """
    integrations = extra("mlflow.utils.autologging_utils").AUTOLOGGING_INTEGRATIONS
    hooks, active_model = extra("mlflow.utils.import_hooks")._post_import_hooks, _fluent()._ACTIVE_MODEL_CONTEXT
    before = {name: dict(config) for name, config in integrations.items()}
    waiting, model = {name: list(those) for name, those in hooks.items()}, active_model.get()
    variables = _variables()
    try:
        yield
    finally:
        for name in integrations:
            integrations[name] = before.get(name, {})
        for name in list(hooks):
            # Those of a library that has been imported meanwhile have run.
            hooks[name] = [] if name in sys.modules else waiting.get(name, [])
        active_model.set(model)
        for name in _variables().keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "_MLFLOW_"))}


@contextmanager
def before_each_model(check: Callable[[str | None], None]) -> Iterator[None]:
    """Call `check` with the id of the run before a logged model is created in it, in any thread and by any flavour.

    MLflow has no hook for it: https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/client.py
    """
    client: Any = extra("mlflow").MlflowClient
    create = client._create_logged_model

    def checked(
        self: Any,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        *more: Any,
        **rest: Any,
    ) -> Any:
        check(source_run_id)
        return create(self, experiment_id, name, source_run_id, *more, **rest)

    client._create_logged_model = checked
    try:
        yield
    finally:
        client._create_logged_model = create


def load_stored(flavor: str, path: str) -> Any:
    """The model that a flavour has just stored in a folder or file, before there is an MLmodel file beside it.

    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/sklearn/__init__.py
    """
    return extra(f"mlflow.{flavor}", extra="mlflow")._load_pyfunc(path)


@contextmanager
def requirements_from(infer: Callable[[str, str], list[str] | None]) -> Iterator[None]:
    """Let `infer` find the requirements of a model that is being logged, from its folder and flavour.

    If it returns None, MLflow loads the model in another process to see what it imports, which takes 10 to 70 s:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/environment.py
    """
    models: Any = extra("mlflow.models")
    original = models.infer_pip_requirements

    def infer_pip_requirements(model_uri: Any, flavor: str, fallback: Any = None, **options: Any) -> Any:
        requirements = infer(str(model_uri), flavor)
        if requirements is None or fallback is None:
            return original(model_uri, flavor, fallback, **options)
        named = {re.split(r"[=<>!~\[ ]", line)[0].lower() for line in requirements}
        return [*requirements, *(line for line in fallback if re.split(r"[=<>!~\[ ]", line)[0].lower() not in named)]

    models.infer_pip_requirements = infer_pip_requirements
    try:
        yield
    finally:
        models.infer_pip_requirements = original


@contextmanager
def answers_before_upload(take: Callable[[Path, Any], None]) -> Iterator[None]:
    """Call `take` for a model that this thread logs, with its folder and its answers to its example in a server's JSON.

    Before it uploads a model, MLflow loads it and asks it, and drops the answers:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/models/model.py
    """
    utils: Any = extra("mlflow.models.utils")
    ask = utils._validate_serving_input

    def ask_and_tell(model_uri: str, serving_input: Any) -> Any:
        answers = ask(model_uri, serving_input)
        if receiver := _take_answers.get():
            receiver(Path(model_uri), answers)
        return answers

    if ask.__name__ != ask_and_tell.__name__:
        # It stays: trials log models in several threads, which would restore each other's function.
        utils._validate_serving_input = ask_and_tell
    token = _take_answers.set(take)
    try:
        yield
    finally:
        _take_answers.reset(token)


@contextmanager
def versions_read_once() -> Iterator[None]:
    """Let MLflow look up the installed version of a package once, for all models that are logged inside the block.

    It does so for each requirement of a model three times, and parses the package's metadata each time:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/utils/requirements_utils.py
    """
    utils: Any = extra("mlflow.utils.requirements_utils")
    original = utils._get_installed_version
    utils._get_installed_version = cache(original)
    try:
        yield
    finally:
        utils._get_installed_version = original


def register_header_provider(registry: Any, provider: Callable[[], Any]) -> None:
    """Add a provider of request headers to MLflow's registry of them, which takes entry points only.

    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/request_header/registry.py
    """
    registry._request_header_provider_registry.register(provider)


def trial_of(study: Any, frozen: Any) -> Any:
    """The ``optuna.Trial`` that continues a trial which another process has started.

    A frozen trial has only a number, and a study creates only new trials:
    https://github.com/optuna/optuna/blob/v5.0.0/optuna/trial/_trial.py
    """
    return extra("optuna").trial.Trial(study, frozen._trial_id)


def reported(trial: Any) -> dict[int, float]:
    """The values that an ``optuna.Trial`` has reported, by step.

    Only a frozen trial shows them, which the storage would have to be asked for:
    https://github.com/optuna/optuna/blob/v5.0.0/optuna/trial/_trial.py
    """
    return trial._cached_frozen_trial.intermediate_values


def tell(study: Any, trial: Any, value: float | None, state: Any) -> Any:
    """End an ``optuna.Trial`` and return it frozen, as ``Study.tell`` does, which reads it from the storage for that.

    What the function below ``Study.tell`` returns is another thing in each version of Optuna:
    https://github.com/optuna/optuna/blob/v5.0.0/optuna/study/_tell.py
    """
    extra("optuna.study._tell")._tell_with_warning(study, trial, value, state)
    ended = copy(trial._cached_frozen_trial)
    last = ended.intermediate_values.get(ended.last_step, nan) if state.name == "PRUNED" else nan
    ended.state, ended.value = state, value if isnan(last) else last
    ended.datetime_complete = datetime.now()
    return ended


def _fluent() -> Any:
    return extra("mlflow.tracking.fluent")
