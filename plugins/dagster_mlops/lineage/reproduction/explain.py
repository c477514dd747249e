"""The differences between two training runs: code, data, features, configuration, environment and machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dagster_mlops.core.git import git
from dagster_mlops.core.run_files import PACKAGES
from dagster_mlops.lineage.reproduction.environment import packages
from dagster_mlops.lineage.reproduction.recipe import Recipe, records_read
from dagster_mlops.provenance import Dataset, Record, TrainingSet

_NONE = "none"


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ. `kind` groups: code, data, features, config, params, environment, …"""

    kind: str
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Explanation:
    """The differences between two training runs, causes apart from results; `unknown` could not be compared."""

    before: Recipe
    after: Recipe
    causes: tuple[Difference, ...]
    metrics: tuple[Difference, ...]
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "before": self.before.run.to_dict(),
            "after": self.after.run.to_dict(),
            "causes": [vars(cause) for cause in self.causes],
            "metrics": [vars(metric) for metric in self.metrics],
            "unknown": list(self.unknown),
        }


def explain(before: Recipe, after: Recipe) -> Explanation:
    """The possible causes why the second run differs from the first, and the differences of their metrics.

    why = explain(find_recipe("delay/3"), find_recipe("delay/4"))
    [f"{cause.kind}: {cause.name}" for cause in why.causes]
    """
    old, new = before.run, after.run
    steps, systems = (before.step, after.step), (before.system, after.system)
    code = ({"commit": run.code_commit, "uncommitted changes": run.dirty} for run in (old, new))
    features = ({"service": run.feature_service, "definitions": run.registry_hash} for run in (old, new))
    causes = [
        *_named("code", *code),
        *_changed_files(before, after),
        *_named("data", *(_data(recipe) for recipe in (before, after))),
        *_named("features", *features),
        *_named("config", *(_flat(step.get("config")) for step in steps)),
        *_named("params", _logged(before), _logged(after)),
        *_named("seed", {"seed": old.seed}, {"seed": new.seed}),
        *_named("environment", {"python": old.python}, {"python": new.python}),
        *_named("environment", *(packages(recipe.files.get(PACKAGES, b"")) for recipe in (before, after))),
        *_named("machine", *(_flat({k: v for k, v in s.items() if k not in ("schema", "python")}) for s in systems)),
    ]
    unknown = [
        f"{name} of run {recipe.run.run_id[:12]}"
        for recipe in (before, after)
        for name, recorded in (("packages", PACKAGES in recipe.files), ("config and inputs", recipe.step))
        if not recorded
    ]
    return Explanation(before, after, tuple(causes), tuple(_named("metric", old.metrics, new.metrics)), tuple(unknown))


def _named(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    return [
        Difference(kind, name, _text(before.get(name)), _text(after.get(name)))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _text(value: Any) -> str:
    return _NONE if value in (None, "") else str(value)


def _data(recipe: Recipe) -> dict[str, str]:
    """Content hashes of all inputs, direct and further upstream, by path."""
    direct = [record for _, records in records_read(recipe.step) for record, _ in records]
    direct = direct or [link.record for link in recipe.chain.upstream if link.record]
    sets = {f"training set of {r.feature_service}": r.content_hash for r in direct if isinstance(r, TrainingSet)}
    datasets: list[Record] = [*recipe.chain.find(Dataset), *direct]
    return sets | {record.path: record.md5 for record in datasets if isinstance(record, Dataset)}


def _logged(recipe: Recipe) -> dict[str, str]:
    """The params that the function logged, without those that are compared as config."""
    return {n: value for n, value in recipe.run.params.items() if not (recipe.step and n.startswith("config."))}


def _changed_files(before: Recipe, after: Recipe) -> list[Difference]:
    repository = after.repository or before.repository
    if repository is None or before.run.code_commit == after.run.code_commit:
        return []
    diff = git(repository, "diff", "--numstat", before.run.code_commit, after.run.code_commit)
    rows = [line.split("\t") for line in diff.stdout.decode(errors="replace").splitlines() if not diff.returncode]
    return [Difference("code", name, f"{removed} lines", f"{added} lines") for added, removed, name in rows]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted names."""
    if not isinstance(value, Mapping | list):
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for key, below in value.items() if isinstance(value, Mapping) else enumerate(value):
        flat |= _flat(below, f"{prefix}.{key}" if prefix else str(key))
    return flat
