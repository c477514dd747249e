"""Model versions of any registry: names, the one that an asset made last, the holder and the moves of an alias."""

import json
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import misspelt, upstream_records
from dagster_mlops.core.notes import read_note
from dagster_mlops.errors import ModelVersionError, ProvenanceError
from dagster_mlops.provenance import NAMESPACE, Dataset, ModelVersion
from dagster_mlops.tools import HoldsModels

PROMOTED = f"{NAMESPACE}.promoted"
"""Key of the note on a model version with the alias moves that it took part in: a JSON list, oldest first."""
_ALIAS, _RESERVED = re.compile(r"[\w-]+"), re.compile(r"latest|v\d+", re.IGNORECASE)
INTENDED, DONE = "intended", "done"  # states of such a move


def parse_version(text: str) -> tuple[str, str]:
    """The name of a model, and ``@alias``, a version, or an empty text for the newest.

    >>> parse_version("models:/delay@champion"), parse_version("flights/delay/3"), parse_version("delay")
    (('delay', '@champion'), ('flights/delay', '3'), ('delay', ''))
    """
    text = text.removeprefix("models:/")
    name, at, alias = text.rpartition("@")
    if at:
        return name, f"@{alias}"
    name, slash, version = text.rpartition("/")
    return (name, version) if slash else (text, "")


def refuse_alias(alias: str, registry: str, argument: str) -> None:
    """Refuse an alias that MLflow refuses only when it is written, after the training, or resolves by itself.

    Raises:
        DagsterInvalidDefinitionError: it is one, and the resource key `registry` is MLflow's.
    """
    if registry != "mlflow" or (_ALIAS.fullmatch(alias) and not _RESERVED.fullmatch(alias) and len(alias) <= 255):
        return
    raise dg.DagsterInvalidDefinitionError(
        f"{argument}={alias!r} is not an alias that MLflow accepts: it takes letters, digits, '_' and '-', and means "
        "version 1 by 'v1' and the newest version by 'latest'. Name it for its use, such as 'champion'."
    )


def made_by(context: dg.AssetExecutionContext, asset: dg.AssetKey, name: str = "") -> ModelVersion:
    """The version that an upstream asset made last; of the registered model `name`, if that is given.

    Raises:
        ModelVersionError: it has made none.
    """
    records = upstream_records(context)
    makers = ("", asset.to_user_string())  # who made a version that was reported by hand need not be known
    versions = [
        record
        for record in records
        if isinstance(record, ModelVersion) and (record.name == name if name else record.dagster_asset in makers)
    ]
    if not versions:
        with_name = f" with registered_model_name={name!r}" if name else ""
        kinds = ", ".join(sorted({record.role for record in records})) or "no record"
        raise ModelVersionError(
            f"{context.assets_def.key.to_user_string()} found no version{f' of {name!r}' if name else ''} on "
            f"{asset.to_user_string()}; there is {kinds}. "
            + (misspelt(context, asset) or f"Materialize a training_asset{with_name} there first.")
        )
    return versions[-1]


def content_hashes(context: dg.AssetExecutionContext, rows: dg.AssetKey) -> list[str]:
    """The content hashes on record of the dataset that an upstream asset is, one for each partition that is read."""
    records = [record for record in upstream_records(context) if isinstance(record, Dataset)]
    return [record.md5 for record in records if record.dagster_asset == rows.to_user_string()]


def holder(registry: HoldsModels, name: str, alias: str) -> ModelVersion | None:
    """The version that holds an alias."""
    try:
        return registry.version(name, f"@{alias}")
    except ModelVersionError:
        return None


def moves(registry: HoldsModels, version: ModelVersion) -> list[dict[str, Any]]:
    """The alias moves that a version took part in, oldest first; none where their note cannot be read."""
    of = f"note {PROMOTED} of version {version.version} of {version.name!r}"
    return read_note(registry.notes(version).get(PROMOTED), _read_moves, of=of, default=[])


def _read_moves(text: str) -> list[dict[str, Any]]:
    history = json.loads(text)
    for move in history:
        for name in ("alias", "from", "to", "state", "at"):
            if not isinstance(move[name], str):
                raise ProvenanceError(f"the {name!r} of a move is {move[name]!r}, not a text.")
        if not isinstance(move["why"], str) or not isinstance(move["values"], dict):
            raise ProvenanceError("a move has no reason, or no values.")
    return history


def write_move(registry: HoldsModels, version: ModelVersion, move: Mapping[str, Any]) -> None:
    """Add an alias move to a version's history, or complete the one that was intended before."""
    earlier_moves = moves(registry, version)
    if not earlier_moves and (unreadable := registry.notes(version).get(PROMOTED, "[]")) != "[]":
        registry.note(version, f"{PROMOTED}.unreadable", unreadable)  # rather than write over what someone may want
    history = [earlier for earlier in earlier_moves if not _is_earlier_form(earlier, move)]
    registry.note(version, PROMOTED, json.dumps([*history, dict(move)]))


def _is_earlier_form(earlier: Mapping[str, Any], move: Mapping[str, Any]) -> bool:
    """True if `earlier` is the same move, intended before or written twice because of a kill in between."""
    same = all(earlier[name] == move[name] for name in ("alias", "from", "to"))
    return same and (earlier["state"] == INTENDED or earlier["at"] == move["at"])
