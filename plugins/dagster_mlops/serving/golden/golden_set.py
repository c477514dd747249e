"""The golden set: rows whose served predictions must equal those of the registered model."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from dagster_mlops.core import row_values
from dagster_mlops.core.arrays import PyFuncModel, pd
from dagster_mlops.core.failures import raised_as
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.golden.answers import expected_answers, largest_difference

if TYPE_CHECKING:
    import httpx

    from dagster_mlops.serving.golden.entities import GoldenEntities

_BATCH, _ALONE = 500, 10


class Asks(Protocol):
    """The way in which golden rows are sent, as the state of a deployment has it."""

    @property
    def route(self) -> str: ...

    @property
    def rows_field(self) -> str: ...

    @property
    def probe(self) -> str: ...


@lazy_dataclass(frozen=True)
class Golden:
    """Rows of features as JSON carries them, and what the registered model predicts for them.

    `entities` are those of a server that looks up features.
    """

    rows: list[dict[str, Any]]
    expected: list[Any]
    entities: "GoldenEntities | None" = None

    def compare(self, client: "httpx.Client", state: Asks, *, tolerance: float) -> float:
        """The largest difference between the predictions that a client gets and the expected ones.

        Raises:
            DeploymentError: the server refuses a row, or a difference exceeds `tolerance`. The worst rows are named by
                their number; their values are shown on request only, because they may be a customer's.
        """
        served: list[Any] = []
        for start in range(0, len(self.rows), _BATCH):
            served.extend(self._ask(client, state, self.rows[start : start + _BATCH]))
        for row in spread(len(self.rows), _ALONE):  # a prediction is not to depend on the rows beside it
            [value] = self._ask(client, state, [self.rows[row]])
            if largest_difference(self.expected[row], value) > tolerance:
                served[row] = value
        differences = [largest_difference(a, b) for a, b in zip(self.expected, served, strict=True)]
        worst = sorted(range(len(differences)), key=lambda i: -differences[i])[:5]
        if differences[worst[0]] > tolerance:
            table = "\n".join(f"  row {i}: difference {differences[i]:g}{self._values(i, served)}" for i in worst)
            features = f"Features: {', '.join(self.rows[0])}. {row_values.HINT}\n"
            raise DeploymentError(
                f"{sum(d > tolerance for d in differences)} of {len(differences)} golden predictions differ from the "
                f"registry model by more than {tolerance:g} (at most {differences[worst[0]]:g}). The worst:\n{table}\n"
                f"{row_values.if_shown('', features)}"
                "The new deployment took no traffic. Rebuild the package, or look at how the service prepares features."
            )
        if self.entities is None:
            return float(differences[worst[0]])
        of_entities = self.entities.compare(partial(self._ask, client, state, field="entities"), tolerance=tolerance)
        return max(float(differences[worst[0]]), of_entities)

    def _ask(self, client: "httpx.Client", state: Asks, rows: list[dict[str, Any]], *, field: str = "") -> list[Any]:
        url, body = str(client.base_url).rstrip("/"), {field or state.rows_field: rows}
        response = client.post(state.route, json=body, headers={"x-probe": state.probe})
        if response.status_code != 200 or "predictions" not in response.json():
            answer = row_values.if_shown(repr(response.text[:500]), f"({row_values.HINT})")
            raise DeploymentError(
                f"{url}{state.route} answers golden rows with {response.status_code} {answer}. The route must "
                f"take {{'{field or state.rows_field}': [...]}} and return {{'predictions': [...]}}."
            )
        predictions = response.json()["predictions"]
        if len(predictions) != len(rows):
            raise DeploymentError(
                f"{url}{state.route} returns {len(predictions)} predictions for {len(rows)} golden rows."
            )
        return predictions

    def _values(self, row: int, served: list[Any]) -> str:
        values = f": registry {self.expected[row]}, served {served[row]}, features {self.rows[row]}"
        return row_values.if_shown(values)


def score_golden(
    model: "PyFuncModel",
    name: str,
    frame: "pd.DataFrame",
    rows: int,
    *,
    outputs: Callable[["PyFuncModel", "pd.DataFrame"], list[Any]] | None = None,
) -> Golden:
    """Score up to `rows` rows of `frame`, evenly spread, with the registered model; other columns are left out.

    Args:
        name: The model's name in errors.
        outputs: Predictions in the form in which the server returns them; that of the generic service unless given.

    Raises:
        DeploymentError: the model cannot score the rows, or the frame is empty or lacks a feature.
    """
    from dagster_mlops.serving.runtime import records_of, signature_inputs  # for steps

    if not hasattr(frame, "columns") or not len(frame):
        raise DeploymentError(
            f"the golden set is {type(frame).__name__} with {len(frame) if hasattr(frame, '__len__') else 'no'} rows; "
            "it must be a dataframe with at least one. A partitioned asset needs an unpartitioned golden set beside it."
        )
    with raised_as(DeploymentError, f"{name} cannot score a golden set", ValueError):
        signature_inputs(model)
    schema: Any = model.metadata.get_input_schema()
    missing = [column for column in schema.required_input_names() if column not in frame.columns]
    if missing:
        raise DeploymentError(
            f"the golden set lacks feature(s) {', '.join(missing)} of {name}; it has {', '.join(map(str, frame))}."
        )
    names = [column for column in schema.input_names() if column in frame.columns]
    sample = frame[names].iloc[spread(len(frame), rows)].reset_index(drop=True)
    try:
        expected = (outputs or expected_answers)(model, sample)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        types = {column: str(dtype) for column, dtype in sample.dtypes.items()}
        raise DeploymentError(
            f"{name} cannot score the golden set: {row_values.refusal(error)} It takes {schema}; the "
            f"golden set has {types}."
        ) from row_values.cause(error)
    return Golden(rows=records_of(sample), expected=expected)


def spread(length: int, most: int) -> list[int]:
    """At most so many positions of a sequence, evenly spread from its first to its last.

    >>> spread(399, 4), spread(3, 10)
    ([0, 132, 265, 398], [0, 1, 2])
    """
    count = min(length, most)
    return [number * (length - 1) // max(1, count - 1) for number in range(count)]
