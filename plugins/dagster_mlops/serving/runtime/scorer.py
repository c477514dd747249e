"""The way in which a model is asked: its library's own predict where that answers as MLflow's does, else MLflow's."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .outputs import outputs_by_row, positive_class
from .schema import Features, features_of_model

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

Values = Sequence[tuple[Any, ...]]
_logger = logging.getLogger("bentoml.dagster_mlops")
# Libraries whose models take an array or a frame by a method of the same name as MLflow's option says.
_OWN_PREDICT = ("mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost")
TOLERANCE = 1e-9
"""Relative; as of a deployment's golden rows, which are asked alone and together, too."""


class Scorer:
    """Asks a model for its predictions by the cheapest way that gives what MLflow's pyfunc gives.

    MLflow checks a frame that was built for it once more, which takes longer than most small models do. So the model's
    own predict is asked, with an array where all features are numbers, else with the frame: if it gave the same for
    `examples`, for all rows at once and for each alone. Without examples, MLflow is asked.

    `joins` says whether rows of several requests may be scored together: each row of the examples has the same
    prediction alone as among the others. Numbers are the same within :data:`TOLERANCE`: a product of matrices rounds
    each row by how many there are.
    """

    def __init__(self, model: "PyFuncModel", examples: Sequence[Any] = ()) -> None:
        self.features: Features = features_of_model(model)
        self._model = model
        flavor = model.metadata.flavors.get("python_function", {})
        self._method = str(flavor.get("predict_fn", "predict"))
        self._ask, self.way, self.joins = self._by_pyfunc, "pyfunc", False
        values = self.features.checked(examples) if examples else []
        if not values:
            return
        expected = self.score(values)
        # Without an optional feature in any row there is no column of it, which other requests' rows would change.
        several = len(values) > 1 and not self.features.optional
        self.joins = several and _same([self.score([row])[0] for row in values], expected)
        for way, ask in self._ways(str(flavor.get("loader_module", ""))):
            if self._agrees(ask, values, expected):
                self._ask, self.way = ask, way
                break

    def score(self, values: Values, params: dict[str, Any] | None = None) -> list[Any]:
        """One plain prediction for each row: of a ``predict_proba`` model of two classes, the probability of class 1.

        Raises:
            OutputError: the model returned something else.
            Exception: whatever the model's own code raises.
        """
        raw = self._by_pyfunc(values, params) if params else self._ask(values)
        return outputs_by_row(positive_class(raw) if self._method == "predict_proba" else raw, len(values))

    def _by_pyfunc(self, values: Values, params: dict[str, Any] | None = None) -> Any:
        frame = self.features.frame(values)
        return self._model.predict(frame, params=params) if params else self._model.predict(frame)

    def _ways(self, flavor: str) -> list[tuple[str, Callable[[Values], Any]]]:
        if flavor not in _OWN_PREDICT:
            return []
        raw = self._model.get_raw_model()
        predict = getattr(raw, self._method, None)
        if predict is None:
            return []
        ways: list[tuple[str, Callable[[Values], Any]]] = []
        names = getattr(raw, "feature_names_in_", None)
        if self.features.numeric and (names is None or list(names) == self.features.names):
            ways.append(("array", lambda values: self._by_array(predict, values)))
        ways.append(("frame", lambda values: predict(self.features.frame(values))))
        return ways

    def _by_array(self, predict: Callable[[Any], Any], values: Values) -> Any:
        matrix = self.features.matrix(values)
        return self._by_pyfunc(values) if matrix is None else predict(matrix)

    def _agrees(self, ask: Callable[[Values], Any], values: Values, expected: list[Any]) -> bool:
        former, self._ask = self._ask, ask
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                singles = [self.score([row])[0] for row in values] if self.joins else expected
                return _same(self.score(values), expected) and _same(singles, expected)
        except Exception as error:  # noqa: BLE001 - whatever the library raises about this form of input
            _logger.debug("not asked that way: %s", error)
            return False
        finally:
            self._ask = former


def _same(prediction: Any, other: Any) -> bool:
    if isinstance(prediction, float) and isinstance(other, float):
        return math.isclose(prediction, other, rel_tol=TOLERANCE) or (math.isnan(prediction) and math.isnan(other))
    if isinstance(prediction, list) and isinstance(other, list):
        return len(prediction) == len(other) and all(map(_same, prediction, other))
    if isinstance(prediction, dict) and isinstance(other, dict):
        return prediction.keys() == other.keys() and all(_same(prediction[key], other[key]) for key in prediction)
    return type(prediction) is type(other) and prediction == other
