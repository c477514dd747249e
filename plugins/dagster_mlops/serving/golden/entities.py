"""Entities of a golden set: a server that looks up their features must predict as the registered model does of them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dagster_mlops.core import row_values
from dagster_mlops.core.arrays import PyFuncModel, pd
from dagster_mlops.core.model_inputs import fitting_frame
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.golden.answers import expected_answers, largest_difference
from dagster_mlops.serving.golden.golden_set import Golden, spread
from dagster_mlops.serving.runtime.lookup import Lookup, load_lookup
from dagster_mlops.serving.runtime.outputs import records_of

_MOST = 50


@dataclass(frozen=True)
class GoldenEntities:
    """Entities, and the two ways to their predictions: the server's, and the lookup's reference with the model."""

    lookup: Lookup
    model: PyFuncModel
    frame: "pd.DataFrame"

    def compare(self, ask: Callable[[list[dict[str, Any]]], list[Any]], *, tolerance: float) -> float:
        """The largest difference between the predictions that `ask` gets for entities and the expected ones.

        Raises:
            DeploymentError: a difference exceeds `tolerance`, also in a second comparison, as the feature store may
                have changed between the reads of the first; or no entity has features.
        """
        difference = self._difference(ask)
        if difference > tolerance:
            difference = self._difference(ask)
        if difference > tolerance:
            raise DeploymentError(
                f"predictions for entities of the golden set differ by {difference:g} from those of the registry model "
                f"for what the feature store has of them, by more than {tolerance:g}. The new deployment took no "
                "traffic. If the feature store is being written, deploy once more."
            )
        return difference

    def _difference(self, ask: Callable[[list[dict[str, Any]]], list[Any]]) -> float:
        try:
            present: Any = self.lookup.reference(self.frame)
        except Exception as error:  # whatever the feature store's client raises
            raise DeploymentError(f"the feature store does not answer: {error}") from error
        if present.empty:
            raise DeploymentError(
                f"the feature store has no current features of any of {len(self.frame)} entities of the golden set. "
                "Materialize its views, or put entities of today into the golden set."
            )
        schema: Any = self.model.metadata.get_input_schema()
        inputs = present[[name for name in schema.input_names() if name in present]]
        try:
            expected = expected_answers(self.model, fitting_frame(inputs, self.model))
        except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
            raise DeploymentError(
                f"the registry model cannot score what the feature store has of the golden set: "
                f"{row_values.refusal(error)}"
            ) from row_values.cause(error)
        served = ask(records_of(present[list(self.frame.columns)]))
        return max(largest_difference(a, b) for a, b in zip(expected, served, strict=True))


def with_entities(golden: Golden, spec: Mapping[str, Any], model: PyFuncModel, frame: "pd.DataFrame") -> Golden:
    """The golden set with entities of a frame, for a server whose lookup a spec describes.

    Raises:
        DeploymentError: the lookup cannot be opened here, or the frame lacks one of its keys.
    """
    try:
        lookup = load_lookup(spec)
        keys = list(lookup.keys())
    except Exception as error:  # whatever the feature store's client raises
        raise DeploymentError(f"the lookup {spec['provider']} cannot be opened here: {error}") from error
    if missing := [key for key in keys if key not in frame.columns]:
        raise DeploymentError(
            f"the golden set lacks {', '.join(map(repr, missing))}, of which entities consist. Add the column(s), so "
            "that the lookup of features is verified, too."
        )
    entities = frame[keys].dropna().drop_duplicates()
    entities = entities.iloc[spread(len(entities), _MOST)].reset_index(drop=True)
    return dataclasses.replace(golden, entities=GoldenEntities(lookup, model, entities))
