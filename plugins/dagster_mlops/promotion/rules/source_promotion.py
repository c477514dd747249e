"""The promotion of a copied version in the registry that it came from."""

import time
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import option, refuse_age
from dagster_mlops.promotion.verdict import Row
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import KeepsFiles

_MOST = 200  # materializations of the copy asset among which that with the statement is searched
STATEMENT_HASH = "statement_sha256"
"""End of a metadata key of a copy, after the registry's name: the hash of the statement that came along."""


@lazy_dataclass(frozen=True, kw_only=True)
class SourcePromotion:
    """The version was promoted where it was copied from, by the statement that came with it.

    The statement is about the very files of the candidate, by their hash. Where there is a public key, it is signed by
    one; without a key, the row says who could have written it. It says nothing about the time after it: a version that
    was rolled back in the source since the copy asset last ran still has it, until `max_age` is over.
    """

    alias: str = option("Alias to which it was promoted in the source.", default="champion")
    source_model: str = option(
        "Registered model in the source; by default, named as that of the candidate.", default=""
    )
    signed: bool = option("Fail also where no public key is given to verify the signature by.", default=False)

    max_age: timedelta | None = option(
        "How long ago the copy asset may have read the statement in the source, at most; without it, at any time.",
        default=timedelta(days=7),
    )

    def __post_init__(self) -> None:
        if self.max_age is not None:
            refuse_age("SourcePromotion", "max_age", self.max_age)
        wrong = not (isinstance(self.alias, str) and self.alias.strip())
        refuse_useless("SourcePromotion", {f"alias={self.alias!r} is not the name of an alias": wrong})

    @property
    def name(self) -> str:
        return f"promoted to {self.alias} in the source"

    def judge(self, case: Case) -> Sequence[Row]:
        """The statement, its problem if it has one, and how strong it is."""
        from dagster_mlops.promotion.carried import FILE, Statement  # for steps, not for code locations
        from dagster_mlops.promotion.history.entry import promotion_behind
        from dagster_mlops.promotion.history.envelope import PUBLIC_KEYS, trusted_keys

        candidate = case.candidate
        source = next((ref for ref in candidate.upstream if ref.role == ModelVersion.role), None)
        if source is None or not isinstance(case.registry, KeepsFiles):
            raise HistoryError("it is not a copy, which has a statement. Copy a version by model_copy_asset.")
        content = case.registry.read_file(candidate, FILE)
        entries, keys = Statement.read(content).entries(), trusted_keys()
        unsigned = [entry for entry, envelope in entries if keys and not envelope.signer(keys)]
        move, sha256 = entries[-1][0], model_digest(case.stored(candidate).folder)
        problems = {
            f"it is about {move.model!r}, and not {self.source_model or candidate.name!r}": (
                move.model != (self.source_model or candidate.name)
            ),
            f"it is about {move.model}/{move.after}, and the copy is of {source.id}": (
                f"{move.model}/{move.after}" != source.id
            ),
            f"it is about the alias {move.alias!r}": move.alias != self.alias,
            f"the last move there was {move.kind}, without a gate": promotion_behind((e for e, _ in entries), move)
            is None,
            "it is about other files than those of the candidate": not move.sha256 or move.sha256 != sha256,
            f"no key in {PUBLIC_KEYS} has signed it": bool(unsigned),
            f"its signature cannot be verified: set {PUBLIC_KEYS}": self.signed and not keys,
        }
        if not any(problems.values()):
            problems |= self._of_age(case, content)
        problem = next((text for text, is_so in problems.items() if is_so), "")
        signers = sorted({envelope.signer(keys) for _, envelope in entries} - {""})
        strength = (
            f"signed by {', '.join(signers)}"
            if signers
            else "no public key is given: whoever can write to the source, or here, could have written it"
        )
        why = problem and f"the statement does not count: {problem}. Promote it in the source, then copy it again."
        why = why or f"{move.kind} by {move.by} on {move.at[:10]}: {move.why}; {strength}"
        return [Row.of(self.name, not problem, why, candidate=source.id)]

    def _of_age(self, case: Case, content: bytes) -> dict[str, bool]:
        """The problem with the time at which the copy asset last brought this statement; empty for none."""
        from dagster_mlops.promotion.carried import statement_hash  # for steps, not for code locations

        if self.max_age is None:
            return {}
        key, value = f"{case.registry.tool}/{STATEMENT_HASH}", dg.MetadataValue.text(statement_hash(content))
        records = case.context.instance.fetch_materializations(case.asset, limit=_MOST).records if case.context else ()
        brought = (
            each for each in records if (event := each.asset_materialization) and event.metadata.get(key) == value
        )
        seen = next((record.timestamp for record in brought), None)
        asset = case.asset.to_user_string()
        if seen is None:
            return {f"by Dagster's event log, {asset} did not bring it": True}
        age = timedelta(seconds=time.time() - seen)
        return {f"{asset} saw this in the source {age} ago, and at most {self.max_age} is allowed": age > self.max_age}
