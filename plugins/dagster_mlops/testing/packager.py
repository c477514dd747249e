"""The contract of a packaging tool."""

import tempfile
from pathlib import Path

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.environment import environment as environment_variables
from dagster_mlops.core.waits import wait_while
from dagster_mlops.provenance import Package
from dagster_mlops.serving import Packages, PredictionLog, ServerSettings, TunesServers
from dagster_mlops.serving.golden.answers import largest_difference
from dagster_mlops.serving.local import processes
from dagster_mlops.serving.runtime.log.predictions import SHADOW


def check_packager(packager: Packages, package: Package, frame: "pd.DataFrame", *, timeout: float = 120) -> None:
    """Start the server of a package, and hold it against what a rollout needs of it.

        def test_the_contract_of_a_packager(world):
            check_packager(BentomlResource(home=world.home, tracking_uri=world.uri), world.bento, world.golden)

    Args:
        packager: The packaging tool's resource.
        package: The record of a package that the tool has built.
        frame: Rows with the features of its model.
        timeout: Seconds until the server must be ready.

    Raises:
        AssertionError: the server is not ready in time, predicts differently from the registered model, keeps no log of
            its predictions, logs a golden row, or gets the worker's secrets.
    """
    golden = packager.golden(package, frame, 10)
    assert 0 < len(golden.rows) == len(golden.expected) <= 10, "the golden set has not at most 10 rows"
    assert packager.alias_version(package.model_name, "an-alias-that-nothing-has") is None, "an unknown alias is found"
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        folder, port = Path(scratch).resolve(), processes.free_port()
        secrets = {"DATABASE_URL": "postgresql://ml:hidden-1@db", "AWS_SECRET_ACCESS_KEY": "hidden-2"}
        with environment_variables(**secrets):
            server = packager.server(package, port)
        if isinstance(packager, TunesServers):
            assert packager.tuned_server(package, port, ServerSettings()) == server, "no setting changes the server"
        leaks = [name for name, value in server.environment.items() if value in secrets.values()]
        assert not leaks, f"the server gets {', '.join(leaks)} of the worker's environment"
        log, output, probe = folder / "predictions", folder / "server.log", {"x-probe": "a-secret"}
        environment = {
            **server.environment,
            "DAGSTER_MLOPS_DEPLOYMENT": "contract/1",
            "DAGSTER_MLOPS_PREDICTION_LOG": str(log),
            "DAGSTER_MLOPS_PROBE": probe["x-probe"],
        }
        processes.spawn(server.command, state_dir=folder, role="server:1", environment=environment, log=output)
        try:
            with processes.http_client(f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_while(
                    lambda: not _is_ready(client, server.readiness),
                    timeout=timeout,
                    error=lambda _: AssertionError(f"not ready within {timeout:g} s:\n{processes.tail(output)}"),
                )
                body = {server.rows_field: golden.rows}
                response = client.post(server.route, json=body, headers=probe)
                assert response.status_code == 200, f"{server.route} answers {response.status_code} {response.text}"
                difference = largest_difference(golden.expected, response.json()["predictions"])
                assert difference <= 1e-9, f"predictions differ from the registered model's by {difference}"
                assert PredictionLog.read(log).empty, "a golden row was logged"
                copy = {"x-mirrored": probe["x-probe"], "x-request-id": "contract-1"}
                client.post(server.route, json={server.rows_field: golden.rows[:1]}, headers=copy)
                assert PredictionLog.find(log / SHADOW, "contract-1"), "a mirrored request is not in the log of copies"
                assert PredictionLog.read(log).empty, "a mirrored request was logged as one whose answer a client got"
                headers = {"x-request-id": "contract-1"}
                body = {server.rows_field: golden.rows[:1]}
                response = client.post(server.route, json=body, headers=headers)
                entry = PredictionLog.find(log, "contract-1")
                assert entry, f"the prediction is not in the log under its request id ({response.status_code})"
                assert entry["inputs"].items() >= golden.rows[0].items(), f"inputs: {entry['inputs']}"
                assert [entry["output"]] == response.json()["predictions"], f"output: {entry['output']}"
                assert (entry["model_name"], entry["model_version"]) == (package.model_name, package.model_version)
        finally:
            processes.stop(process for group in processes.marked(folder).values() for process in group)


def _is_ready(client: "processes.httpx.Client", readiness: str) -> bool:
    try:
        return client.get(readiness).status_code == 200
    except processes.httpx.HTTPError:
        return False
