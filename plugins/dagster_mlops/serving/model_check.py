"""The question whether a model can be served: asked when it is packed, so that no server fails at its start."""

import warnings
from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.serving.runtime.outputs import OutputError, records_of
from dagster_mlops.serving.runtime.schema import features_of_model
from dagster_mlops.serving.runtime.scorer import Scorer
from dagster_mlops.serving.runtime.scoring import outputs_of

_ROWS = 50
_TYPES = "The types of its signature are not those that the model takes; log a pyfunc that converts them."


def refusal_of_model(folder: Path) -> str:
    """The reason why the generic service cannot serve the model in `folder`; empty if it can.

    The caller has judged its files: the model is loaded. Its input example goes through JSON, as a client would send
    it, and must get the predictions of the example itself.
    """
    pyfunc = extra("mlflow.pyfunc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = pyfunc.load_model(str(folder))
            features = features_of_model(model)
        except ValueError as error:
            return str(error)
        example = model.metadata.load_input_example(str(folder))
        if not hasattr(example, "columns"):
            return ""
        example = example.head(_ROWS)
        try:
            expected = outputs_of(model, example)
        except OutputError as error:
            return f"it cannot be served: {error}"
        except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
            return f"the model refuses its own input example: {_reason(error)}"
        try:
            served = Scorer(model).score(features.checked(records_of(example)))
        except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
            return f"the model refuses its input example as a client would send it: {_reason(error)} {_TYPES}"
    if served != expected:
        row = next(n for n, pair in enumerate(zip(served, expected, strict=True)) if pair[0] != pair[1])
        return f"row {row} of its input example, as a client would send it, has another prediction. {_TYPES}"
    return ""


def _reason(error: Exception) -> str:
    from dagster_mlops.core import row_values  # which imports Dagster

    return row_values.refusal(error)
