"""Whether a training that was run again came out the same, ingredient by ingredient."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dagster_mlops.core.run_files import PACKAGES
from dagster_mlops.lineage.reproduction.environment import packages
from dagster_mlops.lineage.reproduction.recipe import Recipe
from dagster_mlops.provenance import Record, TrainingRun

Outcome = Literal["matched", "differed", "not compared"]
_KINDS = {"dataset": "data", "training_set": "features", "model_version": "model"}
_NOT_READ = "not read"


@dataclass(frozen=True)
class Finding:
    """One comparison of then and now. What `decides` makes the training reproduced, or not."""

    kind: str
    name: str
    outcome: Outcome
    then: str = ""
    now: str = ""
    decides: bool = True


@dataclass(frozen=True)
class Verdict:
    """A training run, the run that repeated it, and how they compare."""

    then: TrainingRun
    now: TrainingRun
    findings: tuple[Finding, ...]

    @property
    def different(self) -> list[str]:
        """Names of what decides and has not matched."""
        return [f"{f.kind} {f.name}" for f in self.findings if f.decides and f.outcome != "matched"]

    @property
    def reproduced(self) -> bool:
        """Whether all that decides has matched, and something was compared."""
        return not self.different and any(finding.decides for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "reproduced": self.reproduced,
            "then": self.then.to_dict(),
            "now": self.now.to_dict(),
            "findings": [vars(finding) for finding in self.findings],
        }


def judge(recipe: Recipe, found: Mapping[str, Any], *, tolerance: float, environment: str) -> Verdict:
    """Compare what came out (`found`: the run, its metrics and params, how the models differ) with what was there."""
    then, now = recipe.run, Record.from_dict(found["run"])
    assert isinstance(now, TrainingRun)
    findings = [
        _same("code", "commit", then.code_commit[:10], now.code_commit[:10]),
        _same("code", "uncommitted changes", then.dirty[:10] or "none", now.dirty[:10] or "none"),
        *_inputs(then, now),
        _same("seed", "seed", str(then.seed), str(now.seed)),
        _same("environment", "python", then.python, now.python, decides=False),
        _same("environment", "lock file", then.lock_hash[:10], now.lock_hash[:10], decides=environment == "new"),
        *_packages(recipe.files.get(PACKAGES), found.get("packages")),
        _same("machine", "platform", then.platform, now.platform, decides=False),
        *_params(then.params, found["params"]),
        *_metrics(then.metrics, found["metrics"], tolerance),
        *_models(found.get("models"), tolerance),
    ]
    return Verdict(then, now, tuple(findings))


def _same(kind: str, name: str, then: str, now: str, *, decides: bool = True) -> Finding:
    return Finding(kind, name, "matched" if then == now else "differed", then, now, decides)


def _inputs(then: TrainingRun, now: TrainingRun) -> list[Finding]:
    """Each input by what it is; its hash is part of its name."""
    before, after = ([ref for ref in run.upstream if ref.role != "commit"] for run in (then, now))
    known = [(ref.role, ref.id) for ref in after]
    left = [ref for ref in after if (ref.role, ref.id) not in {(ref.role, ref.id) for ref in before}]
    findings = []
    for ref in before:
        name, _, version = ref.id.rpartition("@")
        others = [other for other in left if other.role == ref.role and other.id.rpartition("@")[0] == name]
        if (ref.role, ref.id) in known:
            other = version
        elif others:
            left.remove(others[0])
            other = others[0].id.rpartition("@")[2]
        else:
            other = _NOT_READ
        findings.append(_same(_KINDS.get(ref.role, ref.role), name, version[:24], other[:24]))
    for ref in left:
        name, _, version = ref.id.rpartition("@")
        findings.append(_same(_KINDS.get(ref.role, ref.role), name, _NOT_READ, version[:24]))
    return findings


def _packages(then: bytes | None, now: str | None) -> list[Finding]:
    """Which versions are others. What comes out decides: a package more need not change it."""
    if then is None or now is None:
        return []
    before, after = packages(then), packages(now)
    both = before.keys() & after.keys()
    different = sorted(name for name in both if before[name] != after[name])
    if not different:
        counted = f"all {len(before)}" if len(both) == len(before) else f"{len(both)} of {len(before)}"
        return [Finding("environment", f"{counted} packages", "matched", decides=False)]
    return [_same("environment", name, before[name], after[name], decides=False) for name in different]


def _params(then: Mapping[str, str], now: Mapping[str, str]) -> list[Finding]:
    different = sorted(name for name in {*then, *now} if str(then.get(name)) != str(now.get(name)))
    if not different:
        return [Finding("params", f"all {len(then)}", "matched")]
    return [_same("params", name, str(then.get(name)), str(now.get(name))) for name in different]


def _metrics(then: Mapping[str, float], now: Mapping[str, float], tolerance: float) -> list[Finding]:
    findings = []
    # What was no number then is not in the record; what is one now has not been there.
    added = {name for name, value in now.items() if math.isfinite(value) and not name.startswith("system/")}
    for name in sorted(then.keys() | added):
        before, after = then.get(name), now.get(name)
        close = before is not None and after is not None and math.isclose(before, after, rel_tol=tolerance)
        old, new = ("none" if value is None else f"{value:.9g}" for value in (before, after))
        findings.append(Finding("metric", name, "matched" if close else "differed", old, new))
    return findings


def _predictions(models: Mapping[str, Any], tolerance: float) -> Finding:
    if problem := models.get("problem"):
        return Finding("model", "predictions", "not compared", "", problem)
    name, largest, others = f"predictions for {models['rows']} rows", models["largest_difference"], models["others"]
    if largest is None:
        return Finding("model", name, "differed", "", "another shape")
    told = f"largest difference {largest:.3g}" + (f", {others} other values" if others else "")
    return Finding("model", name, "differed" if others or largest > tolerance else "matched", "", told)


def _models(models: Mapping[str, Any] | None, tolerance: float) -> list[Finding]:
    if models is None:
        return [Finding("model", "predictions", "not compared")]
    files = models["files"]
    changed = sorted(n for n in {*files["then"], *files["now"]} if files["then"].get(n) != files["now"].get(n))
    equal = "the same" if not changed else f"other bytes in {', '.join(changed[:3])}"
    return [
        _predictions(models, tolerance),
        # Many formats hold times or addresses: other bytes need not be another model.
        Finding("model", "files", "differed" if changed else "matched", "", equal, decides=False),
    ]
