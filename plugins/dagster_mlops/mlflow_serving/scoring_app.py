"""MLflow's scoring server over the model beside this file, with every prediction logged. Copied into each package."""

import asyncio
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.serving.runtime import (
    PredictionLog,
    RowTooLarge,
    checked_id,
    features_only,
    ids_of_rows,
    signature_inputs,
    trace_id_of,
)


def scoring_app(folder: Path) -> Any:
    """The ASGI app of a package.

    ``POST /invocations`` takes MLflow's ``dataframe_records`` or ``dataframe_split``. Each row is logged under the
    ``X-Request-ID`` header (or a new UUID), several under ``<request id>/<n>``, with the features of the model and
    nothing else that the client sent. Other formats get 415: their rows have no names to be logged under. Ids that do
    not fit get 400, and rows too large for the log 413. A prediction that cannot be logged is not answered.
    """
    from mlflow.pyfunc import scoring_server
    from starlette.responses import JSONResponse, Response

    facts = json.loads((folder / "dagster_mlops.json").read_text())
    record = facts["record"]
    if problem := changed(model_digest(folder / "model"), record.get("sha256", "")):
        raise RuntimeError(f"{record['tag']}: {problem} Nothing is served until the package is built again.")
    sys.dont_write_bytecode = True  # of code that the model brings: it would be another file beside it
    os.environ.update(facts.get("environment", {}))  # with which it was judged that loading it runs no code
    model = scoring_server.load_model_with_mlflow_config(str(folder / "model"))
    features = [str(name) for name in signature_inputs(model).input_names()]
    example = model.metadata.load_input_example(str(folder / "model"))
    if example is not None:
        model.predict(example)  # warm before /ping answers
    log_facts = {
        "tool": "mlflow_serving",
        "bento": record["tag"],
        "model_name": record["model_name"],
        "model_version": record["model_version"],
    }
    log = PredictionLog.from_environment(**log_facts)
    log_of_mirrored = cache(lambda: PredictionLog.from_environment(mirrored=True, **log_facts))
    probe = os.environ.get("DAGSTER_MLOPS_PROBE", "")
    app = scoring_server.init(model)

    def refusal(code: int, error: object) -> Any:
        return JSONResponse({"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}, status_code=code)

    @app.middleware("http")
    async def log_predictions(request: Any, call_next: Any) -> Any:
        if request.url.path != "/invocations":
            return await call_next(request)
        start = time.perf_counter()
        rows = _rows(await request.body())
        if rows is None:
            return refusal(415, "Send JSON with 'dataframe_records' or 'dataframe_split'.")
        try:
            request_id = checked_id(request.headers.get("x-request-id"))
            ids = ids_of_rows(request_id, rows)
        except ValueError as error:
            return refusal(400, error)
        answer = await call_next(request)
        content = b"".join([part async for part in answer.body_iterator])
        marks = {name for name in ("x-probe", "x-mirrored") if probe and request.headers.get(name) == probe}
        if answer.status_code == 200 and log and "x-probe" not in marks:
            outputs = json.loads(content)["predictions"]
            facts = {
                "trace_id": trace_id_of(request.headers.get("traceparent")),
                "seconds": time.perf_counter() - start,
            }
            logged = features_only(rows, features)
            place = ("x-mirrored" in marks and log_of_mirrored()) or log
            try:
                await asyncio.to_thread(place.write, inputs=logged, outputs=outputs, request_ids=ids, **facts)
            except RowTooLarge as error:
                return refusal(413, error)
        headers = {"X-Request-ID": request_id}
        return Response(content, answer.status_code, headers, media_type="application/json")

    return app


def _rows(body: bytes) -> list[dict[str, Any]] | None:
    """The rows of a request by feature name; None where it has no names or is not JSON."""
    try:
        data = json.loads(body)
        if "dataframe_records" in data:
            return [dict(row) for row in data["dataframe_records"]]
        split = data["dataframe_split"]
        return [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]
    except (ValueError, KeyError, TypeError):
        return None


if Path(__file__).with_name("dagster_mlops.json").exists():
    app = scoring_app(Path(__file__).parent)
