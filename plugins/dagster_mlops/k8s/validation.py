"""Checks for Kubernetes config that no cluster would accept, before a step is launched."""

import contextlib
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.core.failures import raised_as
from dagster_mlops.errors import ExecutorConfigError, MissingExtraError
from dagster_mlops.k8s.schema import MANIFESTS, SECTIONS, Schema, committed, installed

if TYPE_CHECKING:
    from dagster_mlops.k8s.policy import PodPolicy

CONFIG_TAG = "dagster-k8s/config"

_QUANTITY = r"\d+(\.\d*)?([eE][+-]?\d+|[EPTGM]i?|Ki|k|m|u|n)?"
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PREFIX = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_SCALARS: dict[str, type] = {"int": int, "bool": bool, "str": str}
_SCALAR_NAMES = {"int": "a whole number", "bool": "true or false", "str": "text"}
_CHOICES = {
    ("V1Toleration", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("V1Toleration", "operator"): ("Exists", "Equal", "Lt", "Gt"),
    ("V1NodeSelectorRequirement", "operator"): ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    ("V1PodSpec", "restart_policy"): ("Never", "OnFailure"),
    ("V1Container", "image_pull_policy"): ("Always", "IfNotPresent", "Never"),
}


def validate_k8s_config(config: Mapping[str, Any], where: str = CONFIG_TAG) -> None:
    """Check a ``dagster-k8s/config`` value: field names and types, quantities, labels, enumerations.

    dagster-k8s checks only names, and only when a step is launched: ``nvidia.com/gpu: one`` reaches the cluster. This
    check is pure Python, so it may run when definitions load.

    >>> validate_k8s_config({"pod_spec_config": {"tolerationz": []}})
    Traceback (most recent call last):
    ...
    dagster_mlops.errors.ExecutorConfigError: dagster-k8s/config is invalid:
      pod_spec_config.tolerationz: V1PodSpec has no such field. Did you mean 'tolerations'?

    Raises:
        ExecutorConfigError: Names each faulty path and the fix.
    """
    problems = list(_section_problems(config, committed()))
    if any("no such field" in problem for problem in problems):
        # A newer client may know the field. Only this error case pays for its import.
        with contextlib.suppress(MissingExtraError):
            problems = list(_section_problems(config, installed()))
    _refuse(problems, where)


def validate_executor_config(config: Mapping[str, Any], where: str = "execution.config.k8s") -> None:
    """Check the config of dagster-k8s' executor: its keys, and the Kubernetes config inside.

    Raises:
        ExecutorConfigError: Names each faulty path and the fix.
    """
    available = committed()["executor"]
    unknown = [key for key in config if key not in available]
    if unknown:
        hints = "; ".join(f"'{key}'{_did_you_mean(key, available)}" for key in unknown)
        raise ExecutorConfigError(f"{where} has unknown keys: {hints}. Known: {', '.join(available)}.")
    validate_k8s_config(config.get("step_k8s_config") or {}, f"{where}.step_k8s_config")
    for op, override in (config.get("per_step_k8s_config") or {}).items():
        validate_k8s_config(override, f"{where}.per_step_k8s_config.{op}")
    _refuse(list(_resource_problems(config.get("resources") or {}, "resources")), where)


def manifest_problems(manifest: Mapping[str, Any]) -> list[str]:
    """Problems of a manifest that no cluster would accept: its fields and their types, quantities, labels.

    >>> manifest_problems({"kind": "Service", "spec": {"port": []}})
    ["Service.spec.port: V1ServiceSpec has no such field. Did you mean 'ports'?"]
    """
    kind = manifest["kind"]
    return list(_problems(manifest, MANIFESTS[kind], kind, committed()["models"]))


def _refuse(problems: list[str], where: str) -> None:
    if problems:
        raise ExecutorConfigError(f"{where} is invalid:\n  " + "\n  ".join(problems))


def validate_definitions(
    defs: dg.Definitions, *, policy: "PodPolicy | None" = None, with_client: bool = False
) -> dg.Definitions:
    """Check the Kubernetes config of every asset, check and job of `defs`, and return `defs`.

        defs = validate_definitions(dg.Definitions(assets=[...], executor=mlops_executor()))

    Args:
        policy: Also refuse what this policy of the executor would refuse when a step is launched.
        with_client: Also build dagster-k8s' own config objects. It imports the Kubernetes client (seconds), so use it
            in a test rather than in the code location.

    Raises:
        ExecutorConfigError: Names the asset or op, the path and the fix.
    """
    for where, tags in _tagged(defs):
        if CONFIG_TAG not in tags:
            continue
        config = tags[CONFIG_TAG]
        config = json.loads(config) if isinstance(config, str) else config
        validate_k8s_config(config, f"{CONFIG_TAG} of {where}")
        if policy:
            policy.refuse(config, f"{CONFIG_TAG} of {where}")
        if with_client:
            job = extra("dagster_k8s.job")
            with raised_as(ExecutorConfigError, f"{CONFIG_TAG} of {where} is refused by dagster-k8s", Exception):
                job.UserDefinedDagsterK8sConfig.from_dict(config)
    return defs


def _tagged(defs: dg.Definitions) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for definition in [*(defs.assets or ()), *(defs.asset_checks or ())]:
        if isinstance(definition, dg.AssetsDefinition) and definition.is_executable:
            for node in definition.node_def.iterate_node_defs():
                yield f"op '{node.name}'", node.tags
    for job in defs.jobs or ():
        if isinstance(job, dg.JobDefinition):
            for node in job.nodes:
                yield f"op '{node.name}' of job '{job.name}'", {**node.definition.tags, **node.tags}


def _section_problems(config: Mapping[str, Any], schema: Schema) -> Iterator[str]:
    for section, value in config.items():
        if section == "merge_behavior":
            if value not in ("DEEP", "SHALLOW"):
                yield f"merge_behavior: {value!r} is neither 'DEEP' nor 'SHALLOW'."
        elif section not in SECTIONS:
            yield f"{section}: no such section{_did_you_mean(section, SECTIONS)} There are {', '.join(SECTIONS)}."
        else:
            yield from _problems(value, SECTIONS[section], section, schema["models"])


def _problems(value: Any, kind: str, path: str, models: Mapping[str, Any]) -> Iterator[str]:
    """Problems of a value, given its type in the Kubernetes client."""
    if value is None or kind in ("object", "datetime", "date", "float"):
        return
    if kind.startswith("list["):
        if not isinstance(value, list | tuple):
            yield f"{path}: {value!r} must be a list."
            return
        for i, item in enumerate(value):
            yield from _problems(item, kind[5:-1], f"{path}[{i}]", models)
    elif kind.startswith("dict["):
        if not isinstance(value, Mapping):
            yield f"{path}: {value!r} must be a mapping."
            return
        of = kind[5:-1].split(", ")[1]
        for key, item in value.items():
            # Quantities may be numbers; dagster-k8s converts them to text.
            if not (of == "str" and path.endswith((".limits", ".requests"))):
                yield from _problems(item, of, f"{path}.{key}", models)
    elif kind in models:
        if not isinstance(value, Mapping):
            yield f"{path}: {value!r} must be a mapping with fields of {kind}."
            return
        fields = models[kind]
        snake = {camel: name for name, (camel, _) in fields.items()}
        for key, item in value.items():
            name = snake.get(key, key)
            if name not in fields:
                yield f"{path}.{key}: {kind} has no such field{_did_you_mean(key, fields)}"
            elif name != key and name in value:
                yield f"{path}.{key}: is given twice, as '{key}' and '{name}'. Keep one."
            else:
                yield from _problems(item, fields[name][1], f"{path}.{key}", models)
                allowed = _CHOICES.get((kind, name))
                if allowed and isinstance(item, str) and item not in allowed:
                    yield f"{path}.{key}: {item!r} is not one of {', '.join(allowed)}."
        yield from _value_problems(kind, {snake.get(key, key): item for key, item in value.items()}, path)
    elif not isinstance(value, _SCALARS[kind]) or (kind == "int" and isinstance(value, bool)):
        yield f"{path}: {value!r} must be {_SCALAR_NAMES[kind]}."


def _value_problems(kind: str, value: Mapping[str, Any], path: str) -> Iterator[str]:
    """Problems by rules that the cluster's API server has beside the types; `value` has names in snake case."""
    if kind in ("V1ResourceRequirements", "V1VolumeResourceRequirements"):
        yield from _resource_problems(value, path)
    elif kind == "V1EmptyDirVolumeSource":
        size = value.get("size_limit")
        if size is not None and not _is_quantity(size):
            yield f"{path}.size_limit: {size!r} is not a quantity. Write e.g. '16Gi'."
    elif kind in ("V1ObjectMeta", "V1PodSpec"):
        for field in ("labels", "annotations", "node_selector"):
            labels = value.get(field)
            for key, text in (labels if isinstance(labels, Mapping) else {}).items():
                yield from _label_problems(key, "" if field == "annotations" else text, f"{path}.{field}")
    elif kind == "V1JobSpec":
        for name in ("active_deadline_seconds", "ttl_seconds_after_finished", "backoff_limit"):
            number = value.get(name)
            if isinstance(number, int) and number < (1 if name == "active_deadline_seconds" else 0):
                yield f"{path}.{name}: {number} is too small."


def _resource_problems(resources: Mapping[str, Any], path: str) -> Iterator[str]:
    groups = {name: resources.get(name) or {} for name in ("limits", "requests")}
    for group, amounts in groups.items():
        if not isinstance(amounts, Mapping):
            yield f"{path}.{group}: {amounts!r} must be a mapping."
            return
        for name, amount in amounts.items():
            if not _is_quantity(amount):
                yield f"{path}.{group}.{name}: {amount!r} is not a quantity. Write e.g. 1, '500m' or '16Gi'."
            elif "/" in name and not str(amount).isdigit():
                yield f"{path}.{group}.{name}: {amount!r} must be a whole number; devices cannot be split."
    for name, requested in groups["requests"].items():
        limit = groups["limits"].get(name)
        if "/" in name and str(limit) != str(requested):
            yield f"{path}.requests.{name}: {requested} must equal the limit ({limit}); devices are not overcommitted."


def _label_problems(key: str, text: Any, path: str) -> Iterator[str]:
    prefix, _, name = key.rpartition("/")
    if not re.fullmatch(_NAME, name) or (prefix and not re.fullmatch(_PREFIX, prefix)):
        yield f"{path}.{key}: is not a label key. Write [prefix/]name of at most 63 letters, digits, '-', '_', '.'."
    if isinstance(text, str) and not is_label_value(text):
        yield f"{path}.{key}: {text!r} is not a label value. Use at most 63 letters, digits, '-', '_' and '.'."


def is_label_value(text: str) -> bool:
    """True for a text that may be the value of a label."""
    return not text or re.fullmatch(_NAME, text) is not None


def _is_quantity(amount: Any) -> bool:
    if isinstance(amount, bool) or not isinstance(amount, int | float | str):
        return False
    return re.fullmatch(_QUANTITY, str(amount)) is not None


def _did_you_mean(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f". Did you mean '{close[0]}'?" if close else "."
