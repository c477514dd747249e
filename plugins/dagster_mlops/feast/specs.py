"""Asset specs of what a Feast repository defines."""

import re
from datetime import timedelta
from typing import Any

import dagster as dg

from dagster_mlops.feast.repository import ViewDefinition
from dagster_mlops.provenance import mask_credentials

_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


def feature_view_spec(view: ViewDefinition, project: str) -> dg.AssetSpec:
    """The spec of a feature view: key, description, owner, tags, column schema, ttl and source as Feast has them."""
    return dg.AssetSpec(
        key=view.name,
        description=view.description or f"Feature view `{view.name}` of Feast project `{project}`.",
        owners=_owners(view.owner),
        tags={f"feast/{k}": v for k, v in view.tags.items() if _TAG_VALUE.fullmatch(v) and _TAG_VALUE.fullmatch(k)},
        metadata=_definition_metadata(view, project),
        kinds={"feast"},
    )


def _definition_metadata(view: ViewDefinition, project: str) -> dict[str, Any]:
    columns = [dg.TableColumn(key, "join key") for key in view.join_keys]
    columns += [dg.TableColumn(view.timestamp_field, "timestamp")] if view.timestamp_field else []
    columns += [dg.TableColumn(f["name"], f["dtype"], f["description"] or None) for f in view.features]
    return {
        "dagster/column_schema": dg.TableSchema(columns),
        "feast/project": project,
        "feast/source": mask_credentials(view.source),
        "feast/ttl": str(timedelta(seconds=view.ttl_seconds)) if view.ttl_seconds else "unlimited",
        "feast/online": view.online,
        **({"feast/tags": dict(view.tags)} if view.tags else {}),
    }


def _owners(owner: str) -> list[str]:
    """Feast's owner is any text; Dagster wants an e-mail address or a team."""
    if _EMAIL.fullmatch(owner):
        return [owner]
    team = re.sub(r"[^A-Za-z0-9_.-]+", "-", owner.removeprefix("team:")).strip("-")
    return [f"team:{team}"] if team else []
