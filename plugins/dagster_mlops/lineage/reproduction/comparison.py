"""Two training runs compared: the verdict on a repetition, and why two runs differ."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dagster_mlops.core.git import git
from dagster_mlops.core.leaves import leaves
from dagster_mlops.core.run_files import PACKAGES
from dagster_mlops.lineage.chain.walk import plain
from dagster_mlops.lineage.reproduction.environment import packages
from dagster_mlops.lineage.reproduction.recipe import Recipe, records_read
from dagster_mlops.provenance import Dataset, Record, TrainingRun, TrainingSet

Outcome = Literal["matched", "differed", "not compared"]
_KINDS = {"dataset": "data", "training_set": "features", "model_version": "model"}
_NOT_READ = "not read"


@dataclass(frozen=True)
class Finding:
    """One comparison of two runs. The training is reproduced if every finding that `decides` has matched."""

    kind: str
    name: str
    outcome: Outcome
    before: str = ""
    after: str = ""
    decides: bool = True


@dataclass(frozen=True)
class Verdict:
    """A training run, the run that repeated it, and the findings of their comparison."""

    original: TrainingRun
    repetition: TrainingRun
    findings: tuple[Finding, ...]

    @property
    def different(self) -> list[str]:
        """Names of the findings that decide and have not matched."""
        return [f"{f.kind} {f.name}" for f in self.findings if f.decides and f.outcome != "matched"]

    @property
    def reproduced(self) -> bool:
        """True if something was compared, and every finding that decides has matched."""
        return not self.different and any(finding.decides for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain({"reproduced": self.reproduced, **vars(self)})


def judge(recipe: Recipe, result: Mapping[str, Any], *, tolerance: float, environment: str) -> Verdict:
    """Compare the recorded run with `result`: the new run, its metrics and params, and differences of the models."""
    before, after = recipe.run, Record.from_dict(result["run"])
    assert isinstance(after, TrainingRun)
    params = sorted({*before.params, *result["params"]})
    findings = [
        _compare("code", "commit", before.code_commit[:10], after.code_commit[:10]),
        _compare("code", "uncommitted changes", before.dirty[:10] or "none", after.dirty[:10] or "none"),
        *_inputs(before, after),
        _compare("seed", "seed", str(before.seed), str(after.seed)),
        _compare("environment", "python", before.python, after.python, decides=False),
        _compare("environment", "lock file", before.lock_hash[:10], after.lock_hash[:10], decides=environment == "new"),
        *_packages(recipe.files.get(PACKAGES), result.get("packages")),
        _compare("machine", "platform", before.platform, after.platform, decides=False),
        *_each("params", f"all {len(before.params)}", params, before.params, result["params"], decides=True),
        *_metrics(before.metrics, result["metrics"], tolerance),
        *_models(result.get("models"), tolerance),
    ]
    return Verdict(before, after, tuple(findings))


def _compare(kind: str, name: str, before: str, after: str, *, decides: bool = True) -> Finding:
    return Finding(kind, name, "matched" if before == after else "differed", before, after, decides)


def _inputs(before: TrainingRun, after: TrainingRun) -> list[Finding]:
    """The inputs, paired by role and name; the version is the rest of the id."""
    old, new = (
        [(ref.role, *ref.id.rpartition("@")[::2]) for ref in run.upstream if ref.role != "commit"]
        for run in (before, after)
    )
    pairs: list[tuple[str, str, str, str]] = []
    unpaired = [ref for ref in new if ref not in old]
    for ref in old:
        other = ref if ref in new else next((other for other in unpaired if other[:2] == ref[:2]), None)
        if other in unpaired:
            unpaired.remove(other)
        pairs.append((ref[0], ref[1], ref[2], other[2] if other else _NOT_READ))
    pairs += [(role, name, _NOT_READ, version) for role, name, version in unpaired]
    return [_compare(_KINDS.get(role, role), name, then[:24], now[:24]) for role, name, then, now in pairs]


def _packages(before: bytes | None, after: str | None) -> list[Finding]:
    """Packages with another version. They do not decide: the results do, and one package more need not change them."""
    if before is None or after is None:
        return []
    old, new = packages(before), packages(after)
    common = sorted(old.keys() & new.keys())
    count = f"all {len(old)}" if len(common) == len(old) else f"{len(common)} of {len(old)}"
    return _each("environment", f"{count} packages", common, old, new, decides=False)


def _each(
    kind: str, all_of_them: str, names: Iterable[str], old: Mapping[str, str], new: Mapping[str, str], *, decides: bool
) -> list[Finding]:
    """A finding for each name that differs, or a single one that none does."""
    findings = [_compare(kind, name, str(old.get(name)), str(new.get(name)), decides=decides) for name in names]
    same = Finding(kind, all_of_them, "matched", decides=decides)
    return [finding for finding in findings if finding.outcome == "differed"] or [same]


def _metrics(before: Mapping[str, float], after: Mapping[str, float], tolerance: float) -> list[Finding]:
    findings = []
    # A record holds finite metrics only, so that a metric which is finite in the new run alone has been added.
    added = {name for name, value in after.items() if math.isfinite(value) and not name.startswith("system/")}
    for name in sorted(before.keys() | added):
        old, new = before.get(name), after.get(name)
        close = old is not None and new is not None and math.isclose(old, new, rel_tol=tolerance)
        texts = ["none" if value is None else f"{value:.9g}" for value in (old, new)]
        findings.append(Finding("metric", name, "matched" if close else "differed", texts[0], texts[1]))
    return findings


def _predictions(models: Mapping[str, Any], tolerance: float) -> Finding:
    if problem := models.get("problem"):
        return Finding("model", "predictions", "not compared", "", problem)
    name, largest, unequal = f"predictions for {models['rows']} rows", models["largest_difference"], models["others"]
    if largest is None:
        return Finding("model", name, "differed", "", "another shape")
    text = f"largest difference {largest:.3g}" + (f", {unequal} other values" if unequal else "")
    return Finding("model", name, "differed" if unequal or largest > tolerance else "matched", "", text)


def _models(models: Mapping[str, Any] | None, tolerance: float) -> list[Finding]:
    if models is None:
        return [Finding("model", "predictions", "not compared")]
    files = models["files"]
    changed = sorted(n for n in {*files["then"], *files["now"]} if files["then"].get(n) != files["now"].get(n))
    equal = "the same" if not changed else f"other bytes in {', '.join(changed[:3])}"
    return [
        _predictions(models, tolerance),
        # Many formats hold times or addresses, so that other bytes may be the same model.
        Finding("model", "files", "differed" if changed else "matched", "", equal, decides=False),
    ]


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
        return plain({**vars(self), "before": self.before.run, "after": self.after.run})


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
        *_named("config", *(dict(leaves(step.get("config") or {})) for step in steps)),
        *_named("params", _logged(before), _logged(after)),
        *_named("seed", {"seed": old.seed}, {"seed": new.seed}),
        *_named("environment", {"python": old.python}, {"python": new.python}),
        *_named("environment", *(packages(recipe.files.get(PACKAGES, b"")) for recipe in (before, after))),
        *_named("machine", *(dict(leaves({**system, "schema": None, "python": None})) for system in systems)),
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
    return "none" if value in (None, "") else str(value)


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
