"""The statement by which a version got its alias, for a deployment that serves no other."""

from dagster_mlops.errors import GateError
from dagster_mlops.promotion.history.entry import Entry, made, promotion_behind, read_entry
from dagster_mlops.promotion.history.envelope import PUBLIC_KEYS, trusted_keys
from dagster_mlops.promotion.history.verification import Store, verify
from dagster_mlops.provenance import ModelVersion, Package
from dagster_mlops.tools import KeepsHistory, OpensModels, tool_for


def require_statement(package: Package, alias: str) -> Entry:
    """The signed entry by which the version in `package` got `alias`, which it still holds by the history.

    Raises:
        GateError: there is none: the history was changed, its last move of the alias is to another version, by hand, or
            without a signature of a public key here, or the files in the package are not those that were promoted.
        DagsterMlopsError: the registry cannot be asked.
    """
    version = f"version {package.model_version} of {package.model_name!r}"
    keys, model = trusted_keys(), next((ref for ref in package.upstream if ref.role == ModelVersion.role), None)
    if not keys:
        raise GateError(
            f"{version} is to be served only if its promotion is signed, and the public key to verify it is missing. "
            f"Set {PUBLIC_KEYS}."
        )
    if model is None:
        raise GateError(f"the package {package.tag} does not say which registry {version} is in. Build it again.")
    with tool_for(model.tool, OpensModels).models_at(model.at) as models:
        if not isinstance(models, KeepsHistory):
            raise GateError(f"the registry {model.tool!r} keeps no history, which has the statements.")
        texts, head = models.history(package.model_name), models.head(package.model_name)
    store = Store(model.tool, {number: [text] for number, text in texts.items()}, [head])
    verification = verify(package.model_name, [store], {}, keys)
    findings = [finding for finding in verification.findings if not finding.store.startswith("alias ")]
    if findings:
        raise GateError(
            f"the history of {package.model_name!r} does not hold, so {version} is not served: {findings[0]}. See "
            f"`dagster-mlops history verify {package.model_name}`."
        )
    entries = made(entry for entry in verification.entries if entry.alias == alias)
    move = next((entry for entry in reversed(entries) if entry.is_move), None)
    if move is None or move.after != package.model_version:
        holder = f"the last move is to version {move.after or 'none'}" if move else "no version was promoted to it"
        raise GateError(f"{version} is not {alias!r} by its history: {holder}. Promote it, or build that version.")
    if move.sha256 != package.sha256 or not move.sha256:
        raise GateError(f"the files of {version} in package {package.tag} are not those that were promoted.")
    promotion = promotion_behind(entries, move)
    if promotion is None:
        raise GateError(
            f"the move of {alias!r} to {version} was {move.kind}, without a gate. Promote a version, or return to one "
            "that was promoted by `dagster-mlops rollback`."
        )
    if not all(read_entry(texts[entry.index])[1].signer(keys) for entry in (promotion, move)):
        raise GateError(f"the promotion of {version} is not signed by a key in {PUBLIC_KEYS}. Promote it with a key.")
    return move
