"""The comparison of a training run with its repetition, ingredient by ingredient."""

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
        return {
            "reproduced": self.reproduced,
            "original": self.original.to_dict(),
            "repetition": self.repetition.to_dict(),
            "findings": [vars(finding) for finding in self.findings],
        }


def judge(recipe: Recipe, result: Mapping[str, Any], *, tolerance: float, environment: str) -> Verdict:
    """Compare the recorded run with `result`: the new run, its metrics and params, and differences of the models."""
    before, after = recipe.run, Record.from_dict(result["run"])
    assert isinstance(after, TrainingRun)
    findings = [
        _compare("code", "commit", before.code_commit[:10], after.code_commit[:10]),
        _compare("code", "uncommitted changes", before.dirty[:10] or "none", after.dirty[:10] or "none"),
        *_inputs(before, after),
        _compare("seed", "seed", str(before.seed), str(after.seed)),
        _compare("environment", "python", before.python, after.python, decides=False),
        _compare("environment", "lock file", before.lock_hash[:10], after.lock_hash[:10], decides=environment == "new"),
        *_packages(recipe.files.get(PACKAGES), result.get("packages")),
        _compare("machine", "platform", before.platform, after.platform, decides=False),
        *_params(before.params, result["params"]),
        *_metrics(before.metrics, result["metrics"], tolerance),
        *_models(result.get("models"), tolerance),
    ]
    return Verdict(before, after, tuple(findings))


def _compare(kind: str, name: str, before: str, after: str, *, decides: bool = True) -> Finding:
    return Finding(kind, name, "matched" if before == after else "differed", before, after, decides)


def _inputs(before: TrainingRun, after: TrainingRun) -> list[Finding]:
    """The inputs, paired by role and name; the version is the rest of the id."""
    old, new = ([(ref.role, ref.id) for ref in run.upstream if ref.role != "commit"] for run in (before, after))
    unpaired = [key for key in new if key not in old]
    findings = []
    for role, identifier in old:
        name, _, version = identifier.rpartition("@")
        if (role, identifier) in new:
            current = version
        elif pair := next((ref for ref in unpaired if ref[0] == role and ref[1].rpartition("@")[0] == name), None):
            unpaired.remove(pair)
            current = pair[1].rpartition("@")[2]
        else:
            current = _NOT_READ
        findings.append(_compare(_KINDS.get(role, role), name, version[:24], current[:24]))
    for role, identifier in unpaired:
        name, _, version = identifier.rpartition("@")
        findings.append(_compare(_KINDS.get(role, role), name, _NOT_READ, version[:24]))
    return findings


def _packages(before: bytes | None, after: str | None) -> list[Finding]:
    """Packages with another version. They do not decide: the results do, and one package more need not change them."""
    if before is None or after is None:
        return []
    old, new = packages(before), packages(after)
    common = old.keys() & new.keys()
    different = sorted(name for name in common if old[name] != new[name])
    if not different:
        count = f"all {len(old)}" if len(common) == len(old) else f"{len(common)} of {len(old)}"
        return [Finding("environment", f"{count} packages", "matched", decides=False)]
    return [_compare("environment", name, old[name], new[name], decides=False) for name in different]


def _params(before: Mapping[str, str], after: Mapping[str, str]) -> list[Finding]:
    different = sorted(name for name in {*before, *after} if str(before.get(name)) != str(after.get(name)))
    if not different:
        return [Finding("params", f"all {len(before)}", "matched")]
    return [_compare("params", name, str(before.get(name)), str(after.get(name))) for name in different]


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
