"""The hash of a stored model. Packages carry this file along, and the server compares before it loads."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import yaml

_IDS_AND_TIMES = {"artifact_path", "model_id", "model_uuid", "run_id", "utc_time_created"}


def model_digest(folder: Path) -> str:
    """SHA-256 of the files of a model, those that say how it is called and what it requires included.

    Left out are what MLflow adds to a registered one, and the ids and times in its MLmodel file.
    """
    digest = hashlib.sha256()
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    for name in sorted(files.keys() - {"registered_model_meta"}, key=Path):
        if name == "MLmodel":
            of_file = _digest_of_description(files[name].read_text())
        else:
            with files[name].open("rb") as content:
                of_file = hashlib.file_digest(content, "sha256").digest()
        # Of a fixed length, so that a file cannot hold the name and the content of the next one.
        digest.update(os.fsencode(name) + b"\0" + of_file)
    return digest.hexdigest()


@lru_cache(8)  # A model is hashed when it is stored and again when it is read back, and PyYAML takes milliseconds.
def _digest_of_description(text: str) -> bytes:
    # Read by the parser that MLflow reads it with: two parsers could be made to see two descriptions.
    described = yaml.safe_load(text) or {}
    facts = {key: value for key, value in described.items() if key not in _IDS_AND_TIMES}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()


def changed(digest: str, expected: str) -> str:
    """The reason that files with this hash are not those that were stored; empty when they are, or none is expected."""
    if expected in ("", digest):
        return ""
    return (
        f"the model's files have the hash {digest[:16]}…, but {expected[:16]}… is on record: someone changed them. "
        "Restore them, or train a new version."
    )
