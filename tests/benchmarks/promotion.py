"""Wrong promotions of a gate in a year of equally good candidates, and the better candidates that it finds.

DAGSTER_MLOPS_YEARS (1000) years of 52 candidates that are as good as the champion, all compared on one holdout:
27,000 rows that have nothing in common, and the flights of June, on which the models' luck is shared by the flights of
a day. The champion and each candidate are one score with noise of the same size, so that none is better on other rows.
Then the same with one candidate whose AUC is 0.005 greater, in the year's middle.

Compared are: beating the champion at 95 %; the gate of `promotion_asset`; LORD++ (A. Ramdas and others, Online control
of the false discovery rate with decaying memory, 2017) and SAFFRON (the same, 2018), whose levels depend on earlier
p-values. At a single look, also McNemar's test and Wilcoxon's, of squared errors.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any, cast

import numpy as np
from scipy import special, stats

from assets.data import source_table
from dagster_mlops.evaluation.metrics import Prediction, Scored, scored
from dagster_mlops.evaluation.paired_tests import paired_test
from dagster_mlops.promotion.error_budget import ErrorBudget
from tests.benchmarks.measure import show

LOOKS, RATE, ROWS, GAIN = 52, 0.05, 27_000, 0.005
YEARS = int(os.environ.get("DAGSTER_MLOPS_YEARS", "1000"))
NOISE, OF_A_DAY = 0.5, 0.35  # of the logarithm of the odds, of a row and of a day
BUDGET = ErrorBudget(RATE, LOOKS)


class Holdout:
    """Rows with a base score; every model is that score with noise of its own."""

    def __init__(self, odds: Any, labels: Any, days: Any | None) -> None:
        self.odds, self.labels, self.days = odds, labels, days

    def model(self, random: np.random.Generator, gain: float = 0.0) -> Scored:
        """A model whose AUC is greater by about `gain` than that of one without: it has less noise."""
        size = NOISE * (1 - gain)
        odds = self.odds + size * random.normal(size=len(self.odds))
        if self.days is not None:
            odds = odds + OF_A_DAY * random.normal(size=self.days.max() + 1)[self.days] * (1 - gain)
        return scored("binary", self.labels, Prediction("probability", special.expit(odds), (0, 1)))

    def share_of_noise(self) -> float:
        """The part of its noise that a model has to lose for an AUC that is greater by `GAIN`, on average."""
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            rounds = [np.random.default_rng(number) for number in range(6)]
            gains = [auc(self.model(random, middle)) for random in rounds]
            plain = [auc(self.model(np.random.default_rng(number))) for number in range(6)]
            low, high = (middle, high) if np.mean(gains) - np.mean(plain) < GAIN else (low, middle)
        return high


def auc(model: Scored) -> float:
    """The area below the ROC curve."""
    ranks, positive = stats.rankdata(model.scores), model.labels == 1
    positives = positive.sum()
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / positives / (len(ranks) - positives))


def independent_rows(random: np.random.Generator) -> Holdout:
    """Rows whose labels are drawn by the base score, about as many late as in the flights."""
    odds = random.normal(-1.2, 1.6, ROWS)
    return Holdout(odds, (random.random(ROWS) < special.expit(odds)).astype(int), None)


def flights_of_june() -> Holdout:
    """The flights of June with the score of a model of the months before, and their days."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    flights = source_table("flights").dropna(subset=["arr_delay", "dep_delay"]).copy()
    for column in ("carrier", "origin"):
        flights[column] = flights[column].astype("category").cat.codes
    inputs = ["hour", "dep_delay", "distance", "carrier", "origin"]
    before, june = flights[flights.month < 6], flights[flights.month == 6]
    model = HistGradientBoostingClassifier(random_state=0).fit(before[inputs], before.arr_delay > 15)
    odds = special.logit(np.clip(model.predict_proba(june[inputs])[:, 1], 0.01, 0.99))
    return Holdout(odds, (june.arr_delay > 15).to_numpy().astype(int), june.day.to_numpy() - 1)


def year(holdout: Holdout | None, better: float, number: int) -> dict[str, tuple[bool, bool]]:
    """Of each gate, whether it made a wrong promotion in a year, and whether it promoted the better candidate."""
    random = np.random.default_rng([7, number])
    rows = holdout or independent_rows(random)
    champion = rows.model(random)
    good_at = LOOKS // 2 if better else None
    candidates = [rows.model(random, better if look == good_at else 0.0) for look in range(LOOKS)]
    of_rows = {"beaten at 95 %": Naive(), "error budget": Budget(), "LORD++": Lord(), "SAFFRON": Saffron()}
    gates = {(name, False): gate for name, gate in of_rows.items()}
    if rows.days is not None:
        gates |= {("error budget", True): Budget()}
    outcome = {}
    models = [*candidates, champion]

    @cache
    def p_value_of(candidate: int, holder: int, grouped: bool) -> float:
        days = rows.days if grouped else None
        return paired_test("auc", models[candidate], models[holder], 1, days).better or 0.0

    for (name, grouped), gate in gates.items():
        holder, wrong, right = LOOKS, False, False
        for look in range(LOOKS):
            if gate.promotes(p_value_of(look, holder, grouped)):
                is_better = look == good_at
                wrong, right, holder = wrong or not is_better, right or is_better, look
        outcome[f"{name}, rows of a day together" if grouped else name] = (wrong, right)
    return outcome


def single_look(holdout: Holdout | None, better: float, number: int) -> dict[str, bool]:
    """Of each test, whether one look at a better candidate shows that it is better, at the level of the budget."""
    random = np.random.default_rng([8, number])
    rows = holdout or independent_rows(random)
    champion, candidate = rows.model(random), rows.model(random, better)
    errors = [(np.exp(-model.columns[4]) - 1) ** 2 for model in (candidate, champion)]  # of the probabilities
    days, wilcoxon = rows.days, cast(Any, stats.wilcoxon(errors[0] - errors[1], alternative="less"))
    return {
        "AUC at 95 %": _shown(paired_test("auc", candidate, champion, 1).better, 0.025),
        "AUC, error budget": _shown(paired_test("auc", candidate, champion, 1).better),
        **(
            {} if days is None else {"the same by day": _shown(paired_test("auc", candidate, champion, 1, days).better)}
        ),
        "McNemar, error budget": _shown(paired_test("accuracy", candidate, champion, 1).better),
        "Wilcoxon, error budget": _shown(float(wilcoxon.pvalue)),
    }


def _shown(p_value: float | None, level: float = BUDGET.level) -> bool:
    return p_value is not None and p_value <= level


def run(rounds: int | None = None) -> dict[str, Any]:
    """All gates on the same years, on all processors."""
    years, results = rounds or YEARS, {}
    with ProcessPoolExecutor() as processes:
        for title, holdout in (("independent rows", None), ("flights of June, by day", flights_of_june())):
            better = (holdout or independent_rows(np.random.default_rng(0))).share_of_noise()
            same = list(processes.map(partial(year, holdout, 0.0), range(years), chunksize=4))
            with_better = list(processes.map(partial(year, holdout, better), range(years // 4), chunksize=4))
            looks = list(processes.map(partial(single_look, holdout, better), range(years // 2), chunksize=4))
            results[title] = {
                "wrong": {gate: float(np.mean([outcome[gate][0] for outcome in same])) for gate in same[0]},
                "right": {
                    gate: float(np.mean([outcome[gate][1] for outcome in with_better])) for gate in with_better[0]
                },
                "single look": {test: float(np.mean([outcome[test] for outcome in looks])) for test in looks[0]},
            }
            rows = [
                (gate, f"{wrong:.1%} ± {1.96 * (wrong * (1 - wrong) / years) ** 0.5:.1%}", f"{right:.0%}")
                for (gate, wrong), right in zip(
                    results[title]["wrong"].items(), results[title]["right"].values(), strict=True
                )
            ]
            headers = ["gate", "years with a wrong promotion", f"+{GAIN} AUC found, in the year's middle"]
            show(f"{title}: {years} years of {LOOKS} candidates, {RATE:.0%} of years asked", headers, rows)
            shares = [(test, f"{share:.0%}") for test, share in results[title]["single look"].items()]
            show(f"{title}: one look at a candidate with +{GAIN} AUC", ["test", "found"], shares)
    return results


class Naive:
    """Promotes what beats the champion at 95 %."""

    def promotes(self, p_value: float) -> bool:
        return p_value <= 0.025


class Budget:
    """The gate of `promotion_asset`."""

    def promotes(self, p_value: float) -> bool:
        return p_value <= BUDGET.level


class Lord:
    """LORD++ with the weights of its paper."""

    def __init__(self) -> None:
        steps = np.arange(1, LOOKS + 1)
        self.weights = 0.07720838 * np.log(np.maximum(steps, 2)) / (steps * np.exp(np.sqrt(np.log(steps))))
        self.promoted: list[int] = []
        self.look, self.start = 0, RATE / 2

    def promotes(self, p_value: float) -> bool:
        self.look += 1
        level = self.weights[self.look - 1] * self.start
        for order, when in enumerate(self.promoted):
            level += (RATE - self.start if order == 0 else RATE) * self.weights[self.look - when - 1]
        if p_value <= level:
            self.promoted.append(self.look)
        return p_value <= level


class Saffron:
    """SAFFRON with the weights and the threshold of its paper."""

    def __init__(self) -> None:
        self.weights = np.arange(1, LOOKS + 1) ** -1.6 / special.zeta(1.6)
        self.promoted: list[int] = []
        self.small: list[bool] = []
        self.start = RATE / 2

    def promotes(self, p_value: float) -> bool:
        look = len(self.small) + 1
        level = self.start * self.weights[look - sum(self.small) - 1]
        for order, when in enumerate(self.promoted):
            since = sum(self.small[when:])
            level += (RATE - self.start if order == 0 else RATE) * self.weights[look - when - since - 1]
        level = min(0.5, 0.5 * level)
        self.small.append(p_value <= 0.5)
        if p_value <= level:
            self.promoted.append(look)
        return p_value <= level
