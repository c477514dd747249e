"""The schema of Kubernetes pods and Jobs as data, to find typos without importing the Kubernetes client.

``schema.json`` holds field → [camel case, type] for each model of the client that pod and Job configs can contain, and
the keys of dagster-k8s' executor config. Importing the client takes seconds, reading the file two milliseconds. After a
new client version, regenerate it (a test compares it with the installed client)::

    python -m dagster_mlops.k8s.schema
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra

FILE = Path(__file__).with_name("schema.json")

# The keys of dagster-k8s/config and their models in the Kubernetes client.
SECTIONS = {
    "container_config": "V1Container",
    "pod_template_spec_metadata": "V1ObjectMeta",
    "pod_spec_config": "V1PodSpec",
    "job_config": "V1Job",
    "job_metadata": "V1ObjectMeta",
    "job_spec_config": "V1JobSpec",
}

# The kinds of manifests that a deployment of a model has, and their models.
MANIFESTS = {
    "ConfigMap": "V1ConfigMap",
    "Deployment": "V1Deployment",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
    "Secret": "V1Secret",
    "Service": "V1Service",
}

Schema = dict[str, Any]


@functools.cache
def committed() -> Schema:
    """The schema that ships with this library."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@functools.cache
def installed() -> Schema:
    """The schema of the installed Kubernetes client and dagster-k8s.

    Raises:
        MissingExtraError: dagster-k8s is not installed.
    """
    client = extra("kubernetes.client.models", extra="k8s")
    models: dict[str, dict[str, list[str]]] = {}
    pending = {*SECTIONS.values(), *MANIFESTS.values()}
    while pending:
        name = pending.pop()
        model = getattr(client, name)
        types = {field: re.sub(r"dict\((\w+), (\w+)\)", r"dict[\1, \2]", t) for field, t in model.openapi_types.items()}
        models[name] = {field: [model.attribute_map[field], kind] for field, kind in types.items()}
        pending |= {reference for kind in types.values() for reference in re.findall(r"[A-Z]\w+", kind)} - set(models)
    executor = extra("dagster_k8s").k8s_job_executor.config_schema.config_type.fields
    return {"executor": sorted(executor), "models": dict(sorted(models.items()))}


def camel_case(value: Any, kind: str) -> Any:
    """A config with the field names that a cluster gets; `kind` is its type in the Kubernetes client.

    >>> camel_case({"host_network": True, "volumes": [{"host_path": {"path": "/"}}]}, "V1PodSpec")
    {'hostNetwork': True, 'volumes': [{'hostPath': {'path': '/'}}]}
    """
    models = committed()["models"]
    if kind.startswith("list[") and isinstance(value, list | tuple):
        return [camel_case(item, kind[5:-1]) for item in value]
    if kind not in models or not isinstance(value, Mapping):
        return value
    types = {name: of for snake, (camel, of) in models[kind].items() for name in (snake, camel)}
    names = {snake: camel for snake, (camel, _) in models[kind].items()}
    return {names.get(key, key): camel_case(item, types.get(key, "object")) for key, item in value.items()}


if __name__ == "__main__":
    schema = installed()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in schema["models"].items())
    FILE.write_text(f'{{"executor": {json.dumps(schema["executor"])},\n"models": {{\n{lines}\n}}}}\n', encoding="utf-8")
