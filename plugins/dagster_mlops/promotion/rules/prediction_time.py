"""The time that the candidate takes for one row."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import is_finite, option
from dagster_mlops.promotion.verdict import Row

_WARM_UP, _CALLS = 5, 100


@lazy_dataclass(frozen=True, kw_only=True)
class PredictionTime:
    """The candidate answers one row within a time, as measured in this step: 95 of 100 calls, after a warm-up.

    The row is the first of the input example that is stored with the model. The machine is that of the promotion, which
    need not be as fast as the server, without a network in between: it is a bound on the model itself.
    """

    max_milliseconds: float = option("Time within which 95 of 100 single rows are answered, in milliseconds.")

    def __post_init__(self) -> None:
        limit = self.max_milliseconds
        wrong = not is_finite(limit) or limit <= 0
        refuse_useless("PredictionTime", {f"max_milliseconds={limit!r} is not a finite number above 0": wrong})

    @property
    def name(self) -> str:
        return f"prediction of a row within {self.max_milliseconds:g} ms"

    def judge(self, case: Case) -> Sequence[Row]:
        """The time of the candidate."""
        from dagster_mlops.evaluation.predictions import load_version  # for steps, not for code locations

        model = load_version(case.context, case.registry, case.candidate).model
        example = model.input_example
        if example is None:
            raise ModelVersionError(
                f"version {case.candidate.version} of {case.candidate.name!r} has no input example to measure it on. "
                "Log models with input_example=rows.head(3)."
            )
        row = example.iloc[:1] if hasattr(example, "iloc") else example if isinstance(example, dict) else example[:1]
        milliseconds = percentile_95(lambda: model.predict(row))
        holds = milliseconds <= self.max_milliseconds
        why = f"95 of {_CALLS} calls of one row took at most {milliseconds:.3g} ms on this machine"
        limit = f"{self.max_milliseconds:g} ms"
        return [Row.of(self.name, holds, why, candidate=f"{milliseconds:.3g} ms", limit=limit)]


def percentile_95(call: Callable[[], Any]) -> float:
    """Milliseconds within which 95 of 100 calls return, after some that warm up."""
    times = []
    for _ in range(_WARM_UP + _CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times[_WARM_UP:])[95 * _CALLS // 100 - 1]
