"""Author of an entry of a history: a person, a schedule or a sensor, and the Dagster run."""

import getpass

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass

_AUTOMATIONS = ("schedule", "sensor")


@lazy_dataclass(frozen=True)
class Author:
    """The one who moves an alias, and the Dagster run and asset by which it happens, if any."""

    by: str
    dagster_run_id: str = ""
    dagster_asset: str = ""

    def facts(self) -> dict[str, str]:
        """The facts for an entry."""
        return {"dagster_run_id": self.dagster_run_id, "dagster_asset": self.dagster_asset}


def author_of(context: dg.AssetExecutionContext) -> Author:
    """The schedule or sensor that launched a run, else the user that its process runs as."""
    tags = context.run.tags
    automation = next((f"{kind} {tags[name]}" for kind in _AUTOMATIONS if (name := f"dagster/{kind}_name") in tags), "")
    return Author(automation or user(), context.run.run_id, context.asset_key.to_user_string())


def user() -> str:
    """The name of the person or service that this process runs as; ``unknown`` for a user id without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of Python 3.12 and 3.13
        return "unknown"
