"""A description of the service in OpenAPI 3.1, with the type and the range of each feature."""

from typing import Any

import msgspec
import numpy as np

_RAW_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_REFUSALS = {
    "400": "The rows or ids do not fit.",
    "408": "The body came too slowly.",
    "413": "The body, or a row, is too large.",
    "415": "The body is neither JSON nor Arrow.",
    "422": "The model refuses the rows.",
    "429": "Too many requests wait.",
    "503": "The prediction cannot be logged.",
    "504": "The model took too long.",
}


def openapi(name: str, request: type) -> dict[str, Any]:
    """The document for the model `name` with requests of type `request`."""
    (schema,), parts = msgspec.json.schema_components(
        [request], schema_hook=_custom, ref_template="#/components/schemas/{name}"
    )
    answer = {
        "type": "object",
        "properties": {
            "request_id": {"type": "string"},
            "ids": {"type": "array", "items": {"type": "string"}},
            "predictions": {"type": "array"},
            "model": {"type": "string"},
            "deployment": {"type": "string"},
        },
        "required": ["request_id", "ids", "predictions", "model", "deployment"],
    }
    refusals = {
        code: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
        for code, text in _REFUSALS.items()
    }
    operation = {
        "summary": "Predictions for rows of features",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {
                "description": "One prediction for each row.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}},
            },
            **refusals,
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": "1"},
        "paths": {"/predict": {"post": operation}},
        "components": {"schemas": {**parts, "Answer": answer, "Error": _RAW_ERROR}},
    }


def _custom(kind: type) -> dict[str, Any]:
    if kind is np.datetime64:
        return {"type": "string", "format": "date-time", "description": "Years 1678 to 2262; UTC without an offset."}
    raise NotImplementedError(kind)
