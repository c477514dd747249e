"""Two training runs compared: the verdict on a repetition, and why two runs differ."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dagster_mlops.core.bounds import as_logged
from dagster_mlops.core.git import git
from dagster_mlops.core.leaves import leaves
from dagster_mlops.core.run_files import CODE, LATER_METRICS, PACKAGES
from dagster_mlops.lineage.chain.walk import plain
from dagster_mlops.lineage.reproduction.code import WITHOUT_KEYS
from dagster_mlops.lineage.reproduction.environment import packages
from dagster_mlops.lineage.reproduction.recipe import NOT_HASHED, Recipe, records_read
from dagster_mlops.lineage.reproduction.trust import COMMIT
from dagster_mlops.provenance import Dataset, Record, TrainingRun, TrainingSet

Outcome = Literal["matched", "differed", "not compared"]
Strength = Literal["reproduced", "too little to tell", "not the same"]
EXACT = 1e-9
"""The tolerance of a comparison that allows noise of floating-point numbers only."""
_KINDS = {"dataset": "data", "training_set": "features", "model_version": "model"}
_NOT_READ = "not read"
# Fewer tell nothing about a model whose learned values cannot be compared: labels are the same for many a model.
_FEW_ROWS, _FEW_ANSWERS = 100, 20
_OF_ARTIFACT = "artifacts/"  # begins the path of a value in a file that the model brings along
# A metric of how long something took, rather than of the model.
_TIME_TAKEN = re.compile(
    r"((mean|total|avg|max|std)_)?(fit|fitting|train|training|wall|wall_clock|tuning|search|preprocessing|inference|"
    r"predict|scoring|eval|evaluation|epoch|elapsed)_?(time|seconds|secs|duration|runtime)(_(s|secs?|seconds|ms))?"
    r"|elapsed",
    re.IGNORECASE,
)


# The text of a param that is a time of day or a temporary folder, of either run. Midnight rather limits the data.
_OF_THE_RUN = re.compile(
    r"(?!.*00:?00:?00)\d{4}-?\d\d-?\d\d[T _-]?\d\d:?\d\d:?\d\d\S*|/(private/)?(tmp|var/(tmp|folders))/\S+"
)


@dataclass(frozen=True)
class Finding:
    """One comparison of two runs. The training is reproduced if every finding that `decides` has matched.

    One that could not be compared leaves the verdict open.
    """

    kind: str
    name: str
    outcome: Outcome
    before: str = ""
    after: str = ""
    decides: bool = True


_UNWATCHED = Finding(
    "machine",
    "watch",
    "not compared",
    "",
    "this system does not say what is opened in C or by other processes",
    decides=False,
)


_HIDDEN = Finding(
    "environment", "", "not compared", "", "the code asks for it: set here, hidden without --env", decides=False
)


@dataclass(frozen=True)
class Verdict:
    """A training run, the run that repeated it, and the findings of their comparison.

    `tolerance` is the largest relative difference of metrics and predictions that counts as the same.
    """

    original: TrainingRun
    repetition: TrainingRun
    findings: tuple[Finding, ...]
    tolerance: float = EXACT

    @property
    def different(self) -> list[str]:
        """Names of the findings that decide and have not matched, those that could not be compared included."""
        return [f"{f.kind} {f.name}" for f in self.findings if f.decides and f.outcome != "matched"]

    @property
    def unknown(self) -> list[str]:
        """Names of the findings that decide and could not be compared."""
        return [f"{f.kind} {f.name}" for f in self.findings if f.decides and f.outcome == "not compared"]

    @property
    def strength(self) -> Strength:
        """The verdict: `reproduced` only if something was compared, and all that decides has matched."""
        outcomes = {finding.outcome for finding in self.findings if finding.decides}
        if "differed" in outcomes:
            return "not the same"
        return "reproduced" if outcomes == {"matched"} else "too little to tell"

    @property
    def reproduced(self) -> bool:
        """True if the verdict is `reproduced`."""
        return self.strength == "reproduced"

    @property
    def evidence(self) -> str:
        """The results that were compared and are the same, in words."""
        same = [f for f in self.findings if f.outcome == "matched"]
        metrics = sum(f.kind == "metric" for f in same)
        names = [f"{metrics} metric{'s' * (metrics != 1)}"] if metrics else []
        names += [f.name for f in same if f.kind == "model" and (f.decides or f.name == "files")]
        within = f" (within {self.tolerance:g})" if names and self.tolerance > EXACT else ""
        return ", ".join(names) + within

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        facts = {"reproduced": self.reproduced, "strength": self.strength, "evidence": self.evidence}
        return plain({**facts, **vars(self)})


def judge(recipe: Recipe, result: Mapping[str, Any], *, tolerance: float, environment: str) -> Verdict:
    """Compare the recorded run with `result`: the new run, its metrics and params, and differences of the models.

    What neither a commit nor a record versions is a finding that was not compared.
    """
    before, after = recipe.run, Record.from_dict(result["run"])
    assert isinstance(after, TrainingRun)
    findings = [
        _compare("code", "commit", before.code_commit[:10], after.code_commit[:10]),
        _compare("code", "uncommitted changes", before.dirty[:10] or "none", after.dirty[:10] or "none"),
        *_not_kept(recipe),
        *_inputs(before, after),
        *_without_version(recipe, result.get("reads") or {}),
        _compare("seed", "seed", str(before.seed), str(after.seed)),
        _compare("environment", "python", before.python, after.python, decides=False),
        _compare("environment", "lock file", before.lock_hash[:10], after.lock_hash[:10], decides=environment == "new"),
        *_packages(recipe.files.get(PACKAGES), result.get("packages")),
        _compare("machine", "platform", before.platform, after.platform, decides=False),
        *([] if result.get("watched", True) else [_UNWATCHED]),
        *(replace(_HIDDEN, name=f"variable {name}") for name in result.get("hidden", ())),
        *_params(before.params, result["params"]),
        *_metrics(before, {name: as_logged(value) for name, value in result["metrics"].items()}, tolerance),
        *_models(result.get("models"), tolerance),
    ]
    return Verdict(before, after, tuple(findings), tolerance)


def _not_kept(recipe: Recipe) -> list[Finding]:
    """The parts of the recorded run that may not be those that were trained with."""
    code = recipe.step.get("code", {})
    keys = [Finding("code", f"keys in {n}", "not compared", "", WITHOUT_KEYS) for n in code.get("without_keys", ())]
    hashed = recipe.run.files_hash
    return keys if hashed else [*keys, Finding("run", f"files in {CODE}/", "not compared", "", NOT_HASHED)]


def _compare(kind: str, name: str, before: str, after: str, *, decides: bool = True) -> Finding:
    return Finding(kind, name, "matched" if before == after else "differed", before, after, decides)


def _inputs(before: TrainingRun, after: TrainingRun) -> list[Finding]:
    """The inputs with a version, paired by role and name; the version is the rest of the id."""
    old, new = (
        [
            (ref.role, *ref.id.rpartition("@")[::2])
            for ref in run.upstream
            if ref.role != "commit" and not ref.is_unknown
        ]
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


def _params(before: Mapping[str, str], after: Mapping[str, str]) -> list[Finding]:
    """Params that differ; one that is the time or a temporary folder of either run is shown, but does not decide."""
    names = sorted(before.keys() | after.keys())
    return [
        replace(finding, decides=not all(_OF_THE_RUN.fullmatch(text) for text in (finding.before, finding.after)))
        for finding in _each("params", f"all {len(before)}", names, before, after, decides=True)
    ]


def _metrics(run: TrainingRun, after: Mapping[str, float], tolerance: float) -> list[Finding]:
    findings, before = [], run.metrics
    # A record holds finite metrics only, so that a metric which is finite in the new run alone has been added.
    added = {name for name, value in after.items() if math.isfinite(value) and not name.startswith("system/")}
    for name in sorted(before.keys() | added):
        old, new = before.get(name), after.get(name)
        close = old is not None and new is not None and math.isclose(old, new, rel_tol=tolerance)
        texts = ["none" if value is None else f"{value:.9g}" for value in (old, new)]
        is_later = new is None and name in run.tool_facts.get(LATER_METRICS, ())
        texts = [texts[0], "logged after the training"] if is_later else texts
        decides = not is_later and not _TIME_TAKEN.fullmatch(name)
        findings.append(Finding("metric", name, "matched" if close else "differed", texts[0], texts[1], decides))
    return findings


def _without_version(recipe: Recipe, read_again: Mapping[str, Any]) -> list[Finding]:
    """The inputs that nothing versions: assets without a record, and files and addresses that either run has read."""
    findings = [
        Finding("data", f"asset {read['asset']}", "not compared", "", "nothing keeps a version of it")
        for read in recipe.step.get("reads", ())
        if not read["records"]
    ]
    before, after = recipe.reads, read_again
    old, new = before.get("files", {}), after.get("files", {})
    for name in sorted(old.keys() | new.keys()):
        hashes = [(files.get(name) or {}).get("sha256", "") for files in (old, new)]
        if all(hashes) and hashes[0] != hashes[1]:
            findings.append(Finding("data", f"file {name}", "differed", hashes[0][:12], hashes[1][:12]))
        elif name in recipe.tracked and hashes[0] and hashes[0] == hashes[1]:
            findings.append(_compare("data", f"file {name}", hashes[0][:12], hashes[1][:12]))
        else:
            text = (
                "the same content, but nothing versions it" if hashes[0] == hashes[1] != "" else "nothing versions it"
            )
            findings.append(Finding("data", f"file {name}", "not compared", "", text))
    for name in dict.fromkeys([*before.get("addresses", ()), *after.get("addresses", ())]):
        findings.append(Finding("data", name, "not compared", "", "nothing versions it"))
    if more := max(before.get("more_files", 0), after.get("more_files", 0)):
        findings.append(Finding("data", f"{more} more files", "not compared", "", "nothing versions them"))
    variables = before.get("variables", {}), after.get("variables", {})
    changed = [
        n for n in sorted(variables[0].keys() | variables[1].keys()) if variables[0].get(n) != variables[1].get(n)
    ]
    texts = [[values.get(name, "not read") for values in variables] for name in changed] if recipe.reads else []
    return findings + [
        _compare("environment", f"variable {name}", *pair, decides=False)
        for name, pair in zip(changed, texts, strict=False)
    ]


def _predictions(models: Mapping[str, Any], tolerance: float) -> Finding:
    if problem := models.get("problem"):
        return Finding("model", "predictions", "not compared", "", problem)
    name, largest, unequal = f"predictions for {models['rows']} rows", models["largest_difference"], models["others"]
    if largest is None:
        return Finding("model", name, "differed", "", "another shape")
    text = f"largest difference {largest:.3g}" + (f", {unequal} other values" if unequal else "")
    source = f" ({models['rows_from']})" if "rows_from" in models else ""
    return Finding("model", name, "differed" if unequal or largest > tolerance else "matched", "", text + source)


def _models(models: Mapping[str, Any] | None, tolerance: float) -> list[Finding]:
    if models is None:
        return [Finding("model", "predictions", "not compared")]
    files = models["files"]
    changed = sorted(n for n in {*files["then"], *files["now"]} if files["then"].get(n) != files["now"].get(n))
    same_files = bool(files["then"]) and not changed
    equal = f"other bytes in {', '.join(changed[:3])}" if changed else "the same"
    # Many formats hold times or addresses, so that other bytes may be the same model. The same bytes are.
    file_finding = Finding("model", "files", "differed" if changed else "matched", "", equal, decides=same_files)
    predictions, learned = _predictions(models, tolerance), _learned(models)
    same_values = same_files or {finding.outcome for finding in learned} == {"matched"}
    if predictions.outcome == "differed" and models.get("drawn"):  # such as Prophet's intervals
        text = f"drawn anew at each call: {predictions.after}"
        predictions = replace(predictions, outcome="not compared", decides=not same_values, after=text)
    if predictions.outcome == "not compared" and same_files:
        predictions = replace(predictions, decides=False)
    return [predictions, *([] if same_files or models.get("problem") else learned), *_parts(models), file_finding]


def _parts(models: Mapping[str, Any]) -> list[Finding]:
    """The differences of what decides a model's answers beside its files of values."""
    findings = [
        Finding("model", name, "differed", "", f"other {', '.join(models[name][:3])}")
        for name in ("settings", "code")
        if models.get(name)
    ]
    why = "its answers depend on something that is not part of it"
    return findings + [Finding("model", f"reads {file}", "not compared", "", why) for file in models.get("outside", ())]


def _learned(models: Mapping[str, Any]) -> list[Finding]:
    """The comparison of what both models have learned; without it, a few predictions are not enough."""
    learned = models.get("learned")
    if learned is None:
        return []
    count, name, opaque = learned["compared"], "learned values", learned["opaque"]
    if learned["different"]:
        return [Finding("model", name, "differed", "", f"{', '.join(learned['different'])}")]
    if count and not opaque:
        return [Finding("model", f"{count} {name}", "matched", "", "the same")]
    reason = f"of no known form: {', '.join(opaque)}" if opaque else "none are in a known form"
    hint = ""
    if models["rows"] < _FEW_ROWS:
        hint = f"; {models['rows']} rows are too few, name more with --golden"
    elif models["distinct"] < _FEW_ANSWERS:
        hint = f"; {models['distinct']} distinct answers are too few, other values may give them, too"
    decides = bool(hint) or any(path.startswith(_OF_ARTIFACT) for path in opaque)
    return [Finding("model", name, "not compared", "", reason + hint, decides=decides)]


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
        *_named("config", *(dict(leaves({"resources": step.get("resources") or {}})) for step in steps)),
        *_named("params", _logged(before), _logged(after)),
        *_named("seed", {"seed": old.seed}, {"seed": new.seed}),
        *_named("environment", {"python": old.python}, {"python": new.python}),
        *_named("environment", *_variables(before, after)),
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
    files = {f"file {name}": facts["sha256"] for name, facts in recipe.reads.get("files", {}).items()}
    return sets | {record.path: record.md5 for record in datasets if isinstance(record, Dataset)} | files


def _variables(before: Recipe, after: Recipe) -> list[dict[str, str]]:
    """Hashes of the environment variables that the trainings have read, if both have a list of them."""
    read = [recipe.reads.get("variables", {}) for recipe in (before, after)]
    return [{f"variable {name}": value for name, value in values.items()} for values in read]


def _logged(recipe: Recipe) -> dict[str, str]:
    """The params that the function logged, without those that are compared as config."""
    return {n: value for n, value in recipe.run.params.items() if not (recipe.step and n.startswith("config."))}


def _changed_files(before: Recipe, after: Recipe) -> list[Difference]:
    repository = after.repository or before.repository
    commits = (before.run.code_commit, after.run.code_commit)
    if repository is None or commits[0] == commits[1] or not all(map(COMMIT.fullmatch, commits)):
        return []
    diff = git(repository, "diff", "--numstat", *commits)
    rows = [line.split("\t") for line in diff.stdout.decode(errors="replace").splitlines() if not diff.returncode]
    return [Difference("code", name, f"{removed} lines", f"{added} lines") for added, removed, name in rows]
