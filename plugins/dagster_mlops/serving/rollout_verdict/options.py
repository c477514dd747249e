"""Options of a canary and of a shadow deployment, and the faults that they are to find."""

import math
from dataclasses import fields
from typing import Any, ClassVar

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass


@lazy_dataclass(frozen=True, kw_only=True)
class Limits:
    """Error rates of the verdict, and the sizes by which it tells harm from noise.

    Args:
        error_rate: Chance that a rollout of a deployment that is not worse than the baseline is taken back on evidence,
            however often one looks.
        miss_rate: Chance that a deployment that does just the stated harm goes on, for each kind of harm.
        more_errors: Harm: by how much the share of failed requests may not grow.
        slowdown: Harm: by how much latency may not grow, 0.2 for a fifth; None to leave latency out.
        tolerated_slowdown: Growth of latency that is never a reason to go back.
        grace: Requests to the canary whose latency does not count, because its caches are cold. Errors always count.
        max_requests: Requests to the canary after which an open verdict is: back.
        max_seconds: Seconds after which it is the same.
        look_seconds: Seconds between looks, where a deployment is tried; more often costs no certainty.
    """

    kind: ClassVar[str]

    error_rate: float = 0.01
    miss_rate: float = 0.01
    more_errors: float = 0.01
    slowdown: float | None = 0.2
    tolerated_slowdown: float = 0.05
    grace: int = 100
    max_requests: int = 10_000
    max_seconds: float = 86_400.0
    look_seconds: float = 2.0

    def __post_init__(self) -> None:
        what = type(self).__name__
        for option in fields(self):
            value: Any = getattr(self, option.name)
            numbers = value if isinstance(value, tuple | list) else [value]
            nothing = value is None and option.name in _MAY_BE_NONE
            refuse_useless(
                what,
                {f"{option.name}={value!r} is not a number": not nothing and not all(map(_is_number, numbers))},
            )
        refuse_useless(
            what,
            {
                **{
                    f"{name}={(value := getattr(self, name))!r} is not between 0 and 1": not 0 < value < 1
                    for name in ("error_rate", "miss_rate", "more_errors")
                },
                f"slowdown={self.slowdown!r} is not above tolerated_slowdown={self.tolerated_slowdown!r}, which is 0 "
                "or more": self.tolerated_slowdown < 0
                or (self.slowdown is not None and self.slowdown <= self.tolerated_slowdown),
                f"grace={self.grace!r} is below 0": self.grace < 0,
                f"max_requests={self.max_requests!r} is not above grace={self.grace!r}": self.max_requests
                <= self.grace,
                **{
                    f"{name}={(value := getattr(self, name))!r} is not above 0": value <= 0
                    for name in ("max_seconds", "look_seconds")
                },
            },
        )


@lazy_dataclass(frozen=True, kw_only=True)
class Canary(Limits):
    """A deployment that gets growing shares of the traffic, each when the ones before have shown enough.

    A step is left when the canary's requests exclude harm that is as many times greater as the share that it goes on to
    is smaller than all of the traffic: at a tenth of the traffic, an error in ten requests hits one user in a hundred.

    Args:
        steps: Shares of the traffic, smallest first; after the last one it gets all of it.
        output_shift: Share of the predictions that would have to change to make the canary's distribution that of the
            baseline, beyond which it goes back (the total variation distance); None to leave predictions out.
    """

    kind: ClassVar[str] = "canary"

    steps: tuple[float, ...] = (0.01, 0.1, 0.5)
    output_shift: float | None = 0.2

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        steps = list(self.steps)
        refuse_useless(
            "Canary",
            {
                f"steps={self.steps!r} are not growing shares between 0 and 1": not steps
                or steps != sorted(set(steps))
                or not steps[0] > 0
                or not steps[-1] < 1,
                f"output_shift={self.output_shift!r} is not between 0 and 1": self.output_shift is not None
                and not 0 < self.output_shift < 1,
            },
        )


@lazy_dataclass(frozen=True, kw_only=True)
class Shadow(Limits):
    """A deployment that gets a copy of each request and whose answers go to no one, compared on the same inputs.

    Args:
        tolerance: Largest difference of two outputs for the same input that count as the same.
        tolerated_differences: Share of inputs on which the outputs may differ, which is never a reason to go back.
        differences: Harm: the share of inputs on which they may not differ.
    """

    kind: ClassVar[str] = "shadow"

    tolerance: float = 1e-9
    tolerated_differences: float = 0.01
    differences: float = 0.05

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        refuse_useless(
            "Shadow",
            {
                f"tolerance={self.tolerance!r} is below 0": self.tolerance < 0,
                f"differences={self.differences!r} is not between tolerated_differences="
                f"{self.tolerated_differences!r}, which is above 0, and 1": not 0
                < self.tolerated_differences
                < self.differences
                < 1,
            },
        )


_MAY_BE_NONE = ("slowdown", "output_shift")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
