"""Imports a model and builds a bento in a process of its own.

BentoML's home, working directory and import path are process-wide; here they may be. The process holds a file lock
while it works, so a build that outlived its killed Dagster worker and the re-run do not meet. It imports nothing of
Dagster, which would take a fifth of its time.
"""

import json
import os
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import exclusive, sync_tree, write_atomically
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_judgement import judge_model
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.serving.model_check import refusal_of_model

# The copied modules check requests by the first, and the log writes by the second. It rotates by pyarrow, which MLflow
# brings in a version of its own.
SERVING_PACKAGES = ("msgspec", "orjson")
_LONGEST_BUILD = 24 * 3600.0  # seconds; the process that waits is ended by build_timeout long before


def answer(spec: dict[str, Any]) -> None:
    """Build what the spec says, unless the stores hold it already; half-written leftovers are removed first."""
    sys.path.insert(0, os.getcwd())  # a service may import what lies there
    home = Path(os.environ["BENTOML_HOME"])
    bentoml = extra("bentoml")
    with exclusive(home / ".dagster_mlops.lock", _LONGEST_BUILD):
        model = home / "models" / spec["model"].replace(":", "/")
        # BentoML copies file by file into its stores, so only a marker written last tells a whole item from a torn one.
        marker = model / ".dagster_mlops_whole"
        files, stored = model / "mlflow_model", marker.read_text() if marker.exists() else ""
        if not stored or changed(model_digest(files), stored):  # torn, or someone changed it since
            shutil.rmtree(model, ignore_errors=True)
            bentoml.mlflow.import_model(spec["model"], spec["model_uri"], labels=spec["labels"])
        rules = {"expected": [spec["sha256"]], "allow_pickle": spec["allow_pickle"], "trust": spec["trust"]}
        try:
            sha256, _, environment = judge_model(spec["model_uri"], files, **rules)
        except ModelVersionError as error:
            shutil.rmtree(model)
            sys.exit(str(error))
        if sha256 != stored:
            sync_tree(model)
            write_atomically(marker, sha256, durable=True)
        # What the model was logged with, so that a container image can load it.
        logged = files / "requirements.txt"
        requirements = logged.read_text().split("\n") if logged.exists() else []
        bento, facts_file = home / "bentos" / spec["tag"].replace(":", "/"), spec["facts_file"]
        if not (bento / "src" / facts_file).exists():
            os.environ.update(environment)  # with which it was judged that loading the model runs no code
            if spec["generic_service"] and (problem := refusal_of_model(files)):
                sys.exit(f"{spec['model_uri']}: {problem}")
            shutil.rmtree(bento, ignore_errors=True)
            bentoml.bentos.build(
                spec["service"],
                name=spec["name"],
                version=spec["version"],
                labels=spec["labels"],
                build_ctx=spec["build_ctx"],
                include=["*"],
                exclude=[facts_file],
                models=[spec["model"]],
                python={
                    "packages": sorted(_with_ours({*spec["packages"], *filter(None, map(str.strip, requirements))})),
                    # Locking would resolve the requirements over the network.
                    "lock_packages": False,
                },
            )
            # The server compares with what was judged here, even where no hash is on record.
            facts = json.loads(Path(spec["build_ctx"], facts_file).read_text())
            facts |= {"sha256": sha256, "environment": dict(environment)}
            facts["record"]["sha256"] = sha256
            sync_tree(bento)
            write_atomically(bento / "src" / facts_file, json.dumps(facts, indent=1), durable=True)


def _with_ours(requirements: set[str]) -> set[str]:
    """The requirements, and our own: in the versions that the model was judged with, where they do not name one."""
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower() for requirement in requirements}
    return {*requirements, "pyarrow", *(f"{name}=={version(name)}" for name in SERVING_PACKAGES if name not in names)}
