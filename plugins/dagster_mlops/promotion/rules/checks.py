"""Named asset checks that passed, and not too long ago."""

import time
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.asset_records import asset_graph
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.check_states import undecided_because
from dagster_mlops.core.gates import check_problem
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import option, refuse_age
from dagster_mlops.promotion.verdict import Row


@lazy_dataclass(frozen=True, kw_only=True)
class GreenChecks:
    """The latest evaluation of each named check passed, of any asset: a test of fairness, or the drift in production.

    They need not be blocking, and a failure with severity WARN counts. A check that was undecided, such as drift of too
    few rows, passed and is not green: it shows nothing.
    """

    checks: Sequence[str] = option("Asset checks, each as asset:check, such as predictions:drift.")
    max_age: timedelta | None = option("How long ago they may have been evaluated, at most.", default=None)

    def __post_init__(self) -> None:
        text = isinstance(self.checks, str)
        malformed = [] if text else [check for check in self.checks if not all(str(check).rpartition(":")[::2])]
        refuse_useless(
            "GreenChecks",
            {
                f"checks={self.checks!r} is not a list such as ['predictions:drift']": text or not self.checks,
                f"{malformed} do not name asset and check, such as 'predictions:drift'": bool(malformed),
            },
        )
        if self.max_age is not None:
            refuse_age("GreenChecks", "max_age", self.max_age)

    @property
    def name(self) -> str:
        return f"green checks: {', '.join(self.checks)}"

    def judge(self, case: Case) -> Sequence[Row]:
        """A row for each check."""
        return [self._row(case.context, check) for check in self.checks]

    def _row(self, context: dg.AssetExecutionContext, check: str) -> Row:
        asset, _, name = check.rpartition(":")
        key = dg.AssetCheckKey(asset_key(asset), name)
        record, rule = context.instance.get_latest_asset_check_evaluation_record(key), f"{check} is green"
        if record is None:
            names = [each.name for each in asset_graph(context).get_check_keys_for_assets({key.asset_key})]
            checks = f"In this code location, {asset} has the checks {', '.join(sorted(names)) or 'none'}"
            advice = "Evaluate it first" if name in names else checks
            return Row.of(rule, False, f"it was never evaluated. {advice}.", limit=self.max_age)
        age = timedelta(seconds=round(max(0.0, time.time() - record.create_timestamp)))
        passed = isinstance(record.evaluation, dg.AssetCheckEvaluation) and record.evaluation.passed
        problem = check_problem(context.instance, key.asset_key, record) or ("" if passed else "failed")
        if not problem and isinstance(record.evaluation, dg.AssetCheckEvaluation):
            reason = undecided_because(record.evaluation)
            problem = f"was undecided: {reason.rstrip('.')}" if reason else ""
        if problem:
            why = f"it {problem}. Fix the cause, then evaluate it again."
        elif self.max_age is not None and age > self.max_age:
            why = problem = f"it passed {age} ago, and at most {self.max_age} is allowed. Evaluate it again."
        else:
            why = f"it passed {age} ago"
        return Row.of(rule, not problem, why, candidate=age, limit=self.max_age)
