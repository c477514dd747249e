"""Aliases that show the life of a version beside the promoted one: derived from the history, and never promoted."""

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import refuse_alias

CANDIDATE, CHALLENGER, PREVIOUS = "candidate", "challenger", "previous"


@lazy_dataclass(frozen=True)
class Lifecycle:
    """Names of the aliases that follow the promoted one; without a name, the registry gets no such alias.

        promotion_asset(..., lifecycle=Lifecycle(challenger="challenger", previous="previous"))

    They are pointers for people who look at the registry. What they say follows from the history, and each promotion
    and rollback sets them anew: do not move them by hand, nor promote to them.

    Args:
        candidate: Alias of the version that a run judges, for as long as it does.
        challenger: Alias of the version for which all rules hold, for as long as its request to people is open.
        previous: Alias of the version to which a rollback returns.
    """

    candidate: str = ""
    challenger: str = ""
    previous: str = ""

    def names(self) -> dict[str, str]:
        """The aliases by role."""
        return {role: name for role in (CANDIDATE, CHALLENGER, PREVIOUS) if (name := getattr(self, role))}

    def refuse_impossible(self, alias: str, *, has_approval: bool) -> None:
        """Refuse aliases that MLflow refuses, that stand for two things, or that no version would ever get.

        Raises:
            DagsterInvalidDefinitionError: one of them is.
        """
        names = self.names()
        if not names:
            raise dg.DagsterInvalidDefinitionError("Lifecycle() names no alias. Leave it out, or name one.")
        roles = {alias.lower(): "the promoted alias"}  # MySQL tells no capitals from small letters
        for role, name in names.items():
            if not isinstance(name, str):
                raise dg.DagsterInvalidDefinitionError(f"Lifecycle({role}={name!r}): give the name of an alias.")
            refuse_alias(name, "mlflow", f"lifecycle {role}")
            if name.lower() in roles:
                raise dg.DagsterInvalidDefinitionError(
                    f"Lifecycle({role}={name!r}): this is {roles[name.lower()]} already. Give each its own name."
                )
            roles[name.lower()] = f"the {role}"
        if self.challenger and not has_approval:
            raise dg.DagsterInvalidDefinitionError(
                f"Lifecycle(challenger={self.challenger!r}): a challenger waits for people, and without approval= none "
                "ever does. Leave it out, or give approval=Approval()."
            )
