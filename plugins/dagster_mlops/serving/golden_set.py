"""The golden set: rows whose served predictions must equal those of the model in the registry."""

import math
from dataclasses import dataclass
from typing import Any

from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.processes import http_client

_BATCH = 500


@dataclass(frozen=True)
class Golden:
    """Rows of features as JSON carries them, and what the registry model predicts for them."""

    rows: list[dict[str, Any]]
    expected: list[Any]

    def compare(self, url: str, *, route: str, headers: dict[str, str], tolerance: float, timeout: float) -> float:
        """The largest difference between served and expected predictions.

        Raises:
            DeploymentError: the server refuses a row, or a difference exceeds `tolerance`; the worst rows are named.
        """
        served: list[Any] = []
        with http_client(url, timeout=timeout) as client:
            for start in range(0, len(self.rows), _BATCH):
                answer = client.post(route, json={"rows": self.rows[start : start + _BATCH]}, headers=headers)
                if answer.status_code != 200 or "predictions" not in answer.json():
                    raise DeploymentError(
                        f"{url}{route} answers golden rows with {answer.status_code} {answer.text[:500]!r}. "
                        "The route must take {'rows': [...]} and return {'predictions': [...]}."
                    )
                served.extend(answer.json()["predictions"])
        if len(served) != len(self.rows):
            raise DeploymentError(f"{url}{route} returns {len(served)} predictions for {len(self.rows)} golden rows.")
        differences = [_difference(a, b) for a, b in zip(self.expected, served, strict=True)]
        worst = sorted(range(len(differences)), key=lambda i: -differences[i])[:5]
        if differences[worst[0]] > tolerance:
            table = "\n".join(
                f"  row {i}: registry {self.expected[i]}, served {served[i]}, features {self.rows[i]}" for i in worst
            )
            raise DeploymentError(
                f"{sum(d > tolerance for d in differences)} of {len(differences)} golden predictions differ from the "
                f"registry model by more than {tolerance:g} (at most {differences[worst[0]]:g}). The worst:\n{table}\n"
                "The new deployment took no traffic. Rebuild the bento, or look at how the service prepares features."
            )
        return float(differences[worst[0]])


def _difference(expected: Any, served: Any) -> float:
    if isinstance(expected, list) and isinstance(served, list) and len(expected) == len(served):
        return max((_difference(a, b) for a, b in zip(expected, served, strict=True)), default=0.0)
    if isinstance(expected, int | float) and isinstance(served, int | float):
        return abs(expected - served)
    return 0.0 if expected == served else math.inf
