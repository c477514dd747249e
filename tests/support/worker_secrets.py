"""Secrets in the environment of a worker, and the processes that must not get them."""

from pathlib import Path

import psutil

from dagster_mlops.serving.local.processes import marked

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "hidden-aws",
    "DATABASE_URL": "postgresql://ml:hidden-database@db/rows",
    "DAGSTER_PG_PASSWORD": "hidden-dagster",
    "DAGSTER_HOME": "/srv/hidden-home",
    "MLFLOW_TRACKING_TOKEN": "hidden-mlflow",
    "NVIDIA_API_KEY": "hidden-nvidia",
    "https_proxy": "http://ml:hidden-proxy@127.0.0.1:1",
}


def environments(state_dir: Path) -> dict[str, list[bytes]]:
    """By role, the environments of its processes and of their children, as the system has them."""
    return {
        role: [
            Path("/proc", str(process.pid), "environ").read_bytes()
            for one in group
            for process in [one, *psutil.Process(one.pid).children(recursive=True)]
        ]
        for role, group in marked(state_dir).items()
    }
