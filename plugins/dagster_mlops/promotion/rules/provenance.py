"""Complete provenance: the code is in a commit, and every input has a version."""

from collections.abc import Sequence

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import upstream_records
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import ProvenanceError
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import option
from dagster_mlops.promotion.verdict import Row
from dagster_mlops.provenance import Commit, ModelVersion, Record, TrainingRun


@lazy_dataclass(frozen=True, kw_only=True)
class CompleteProvenance:
    """The record of the candidate names a commit, without changes that are not in it, and a version of every input."""

    committed_code: bool = option("The code is in a commit, with no change beside it.", default=True)
    versioned_inputs: bool = option("Each asset that the training read has a version on record.", default=True)
    unversioned: Sequence[AssetLike] = option("Keys of assets that need no version.", default=())

    def __post_init__(self) -> None:
        refuse_useless(
            "CompleteProvenance",
            {
                "it asks for nothing. Leave it out, or set committed_code or versioned_inputs": not (
                    self.committed_code or self.versioned_inputs
                ),
                f"unversioned={self.unversioned!r} is a text. Give a list of asset keys": isinstance(
                    self.unversioned, str
                ),
            },
        )

    @property
    def name(self) -> str:
        return "complete provenance"

    def judge(self, case: Case) -> Sequence[Row]:
        """The commit of the candidate, and all that is missing."""
        record = _origin(case)
        if record is None:
            run = case.candidate.run_id
            raise ProvenanceError(
                f"training run {run}, which made the version, has no record. Train by training_asset."
            )
        commits = [ref.id for ref in record.upstream if ref.role == Commit.role]
        commit = getattr(record, "code_commit", "") or next(iter(commits), "")
        missing = [
            *(_code(record, commit) if self.committed_code else ()),
            *(_inputs(record, self.unversioned) if self.versioned_inputs else ()),
        ]
        why = "; ".join(missing) or f"{record.role.replace('_', ' ')} {record.title()} has all that is asked for"
        return [Row.of(self.name, not missing, why, candidate=commit[:10] or None)]


def _origin(case: Case) -> Record | None:
    """The record of the training run, in Dagster or else in the registry; that of the version if no run made it."""
    from dagster_mlops.evaluation.model_card import KeepsEvaluations  # for steps, not for code locations

    candidate = case.candidate
    if not candidate.run_id:
        return candidate
    for record in upstream_records(case.context) if case.context else ():
        if isinstance(record, TrainingRun) and record.run_id == candidate.run_id:
            return record
    return case.registry.training(candidate).record if isinstance(case.registry, KeepsEvaluations) else None


def _code(record: Record, commit: str) -> list[str]:
    if not commit:
        return ["no commit of its code is on record. Train it in a git repository, by training_asset"]
    if getattr(record, "dirty", ""):
        return ["it was trained with changes that are in no commit. Commit them, then train it again"]
    return []


def _inputs(record: Record, unversioned: Sequence[AssetLike]) -> list[str]:
    allowed = {asset_key(asset).to_user_string() for asset in unversioned}
    inputs = [ref for ref in record.upstream if ref.role not in (Commit.role, TrainingRun.role)]
    if not inputs and not (isinstance(record, ModelVersion) and record.datasets):
        return ["no input is on record. Make the training asset depend on its data"]
    nameless = [ref.id for ref in inputs if ref.is_unknown and ref.id not in allowed]
    return [
        f"{name} has no version on record. Store it by an IO manager that records one, such as dvc_io_manager, or name "
        "it in unversioned="
        for name in nameless
    ]
