"""Back to the deployment before the live one, without Dagster and without the registry."""

import dataclasses
import json
import logging
import time
from pathlib import Path

from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local import supervision
from dagster_mlops.serving.local.blue_green import bring_live, golden_file, new_id
from dagster_mlops.serving.local.reconcile import take_stock
from dagster_mlops.serving.local.state import DeploymentState, load, lock, state_file, utc_now
from dagster_mlops.serving.local.target import LocalTarget

_logger = logging.getLogger(__name__)


def rollback(state_dir: str | Path, *, log: logging.Logger = _logger) -> DeploymentState:
    """Serve the package of the deployment before the live one again; the switch is that of a rollout.

    Its servers start as they did then, from the same package and with the same environment, and take traffic when they
    answer its recorded golden rows. The package that is rolled back stays so: a materialization of the deployment asset
    that asks for it says so and changes nothing. A second rollback returns to it.

        rollback("state/serving")

    Raises:
        DeploymentError: No deployment is live, none was live before it, or the one before does not come up; then the
            live one stays.
    """
    folder = Path(state_dir).expanduser().resolve()
    target = LocalTarget.stored(folder)
    if target is None:
        raise DeploymentError(f"{folder} has no deployment that is live. Name the state_dir of a deployment_asset.")
    with lock(folder, timeout=30):
        current = take_stock(target, log.info)
        former = load(state_file(folder, current.former)) if current and current.former else None
        if current is None or former is None or not supervision.exists(folder, former.role):
            raise DeploymentError(
                f"{folder} keeps no deployment before {current.id if current else 'the live one, because none is live'}"
                ". Materialize the deployment asset with the package that you want."
            )
        start = time.monotonic()
        target.open()
        new = _start(target, former, current)
        golden = Golden(**json.loads(golden_file(former).read_text()))
        return bring_live(new, current, target, lambda: golden, start, log)


def _start(target: LocalTarget, former: DeploymentState, current: DeploymentState) -> DeploymentState:
    record = dataclasses.replace(
        former.record, id=new_id(former.record.package), started=utc_now(), stopped="", traffic=0.0
    )
    new = dataclasses.replace(
        former, record=record, phase="starting", former=current.id, undone_package=current.record.package, error=""
    ).save()
    name = {"DAGSTER_MLOPS_DEPLOYMENT": f"{record.name}/{record.id}"}
    programs = {
        program: dataclasses.replace(spec, environment={**spec.environment, **name}, log=target.log_file(new))
        for program, spec in supervision.programs(target.state_dir, former.role).items()
    }
    supervision.start(target.state_dir, new.role, programs, restart=False, grace=target.request_timeout)
    return new
