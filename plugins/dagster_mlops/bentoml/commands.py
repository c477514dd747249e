"""The command line: ``python -m dagster_mlops.bentoml.commands status|stop STATE_DIR``."""

import json
import sys

from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import status, stop

__all__ = ["main", "status", "stop"]


def main(arguments: list[str]) -> int:
    """``status DIR`` prints JSON and fails unless a deployment is healthy; ``stop DIR`` ends them all."""
    match arguments:
        case ["status", folder]:
            rows = status(folder)
            sys.stdout.write(json.dumps(rows, indent=1) + "\n")
            return 0 if any(row["healthy"] for row in rows) else 1
        case ["stop", folder]:
            sys.stdout.write(f"stopped {stop(folder)} process(es)\n")
            return 0
        case _:
            sys.stderr.write("usage: python -m dagster_mlops.bentoml.commands (status|stop) STATE_DIR\n")
            return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DeploymentError as error:
        sys.exit(str(error))
