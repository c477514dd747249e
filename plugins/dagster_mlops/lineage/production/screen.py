"""The status of production on one screen."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from dagster_mlops.core.screens import conclusion, grid
from dagster_mlops.core.terminal import line
from dagster_mlops.lineage.production.overview import CheckStatus, Production, Promoted, Status
from dagster_mlops.promotion.open_requests import OpenRequest
from dagster_mlops.promotion.verdict import WAITS

_VERDICTS = {"passed": ("✓", "green"), "warned": ("~", "yellow"), "running": ("…", "blue")}


def status_screen(status: Status) -> RenderableType:
    """The status as a renderable, with the verdict as the last line.

    rich.print(status_screen(status(instance)))
    """
    parts: list[RenderableType] = [_production(production) for production in status.production]
    parts += [_promoted(promoted) for promoted in status.promoted]
    if not parts:
        parts.append(
            Text("Nothing is in production: this Dagster instance has no deployment and no alias on record.\n")
        )
    parts += [_open_request(request) for request in status.waiting]
    counts = Counter(check.verdict for check in status.checks)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    parts.append(Text(line(f"Checks: {verdicts or 'none'}"), style="bold"))
    parts += [_check(check) for check in status.checks if check.verdict != "passed"]
    passed = [check for check in status.checks if check.verdict == "passed"]
    for asset in dict.fromkeys(check.asset for check in passed):
        checks = [check for check in passed if check.asset == asset]
        names = ", ".join(check.name for check in checks)
        parts.append(_line("passed", f"{asset}: {names}", max(check.when for check in checks)))
    parts += [Text("\nDrift", style="bold")] if status.drift else []
    parts += [Text(line(f"  {report.id}: {' · '.join(report.details())}")) for report in status.drift]
    for record in status.other_records:
        texts = [record.made_by(), *record.details()]
        name = f"{record.role.replace('_', ' ')} {record.title()}"
        parts.append(Text("\n" + line(f"{name}: {' · '.join(filter(None, texts))}")))
    parts += [Text("\n" + line(f"Unreadable record: {problem}"), style="red") for problem in status.unreadable]
    warned = f"no check fails, {counts['warned']} warn" if counts["warned"] else "every check holds"
    good = "Production answers" if status.live else "No deployment is on record"
    return Group(*parts, Text(), conclusion(status.healthy, f"{good}; {warned}.", _complaint(status)))


def _production(production: Production) -> RenderableType:
    deployment, model = production.deployment, production.model_version
    state = {True: "answers", False: "DOES NOT ANSWER", None: "not asked"}[production.answers]
    if deployment.stopped:
        state = f"stopped {deployment.stopped}"
    version = f"{deployment.model_name}/{deployment.model_version}"
    alias = f" ({', '.join(model.aliases)})" if model and model.aliases else ""
    rows: dict[str, str | Text] = {
        "deployment": f"{deployment.name}/{deployment.id}",
        "state": f"{state} at {deployment.url}" if deployment.url else state,
        "since": _when(production.since),
        "package": deployment.package,
        "model version": version + alias,
        **_origin(production),
        "predictions": deployment.prediction_log,
    }
    return _table("In production", rows)


def _promoted(promoted: Promoted) -> RenderableType:
    version = promoted.model_version
    name = f"{version.name}/{version.version}" if version else ""
    rows: dict[str, str | Text] = {
        "model version": f"{name} ({promoted.alias})",
        "since": _when(promoted.since),
        **_origin(promoted),
    }
    return _table("Promoted, and not deployed on record", rows)


def _open_request(request: OpenRequest) -> RenderableType:
    needed = f" of {request.people}" if request.people else ""
    names = f": {', '.join(request.approvals)}" if request.approvals else ""
    rows: dict[str, str | Text] = {
        "model version": f"{request.model}/{request.version}",
        "alias": f"{request.alias}, now version {request.before or 'none'}",
        "since": f"{request.since[:16].replace('T', ' ')} UTC, asked by {request.by}",
        "rules": request.why,
        "approvals": f"{len(request.approvals)}{needed}{names}",
        "state": request.state,
        "next": request.command if request.verdict == WAITS else f"the next run of {request.asset} acts on it",
        "as of": f"{request.source}. {request.problem}" if request.problem else "",
    }
    return _table("Waits for approval", rows)


def _origin(live: Production | Promoted) -> dict[str, str | Text]:
    """The origin of a model in use, line by line."""
    run = live.training_run
    return {
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in live.metrics.items()) or "none on record",
        "training run": run.run_id if run else "",
        "code": f"{run.code_commit[:10]}{' and uncommitted changes' * bool(run.dirty)}"
        if run and run.code_commit
        else "",
        "training set": " · ".join(live.training_set.details()) if live.training_set else "",
        "data": _data(live),
    }


def _table(title: str, rows: Mapping[str, str | Text]) -> RenderableType:
    table = grid("dim", "")
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    return Group(Text(line(title), style="bold"), table, Text())


def _data(live: Production | Promoted) -> Text:
    folders: dict[str, list[str]] = {}
    for dataset in live.datasets:
        folder = dataset.path.rpartition("/")[0] or dataset.path
        folders.setdefault(folder, []).append(dataset.md5[:8])
    texts = {
        folder: ", ".join(hashes) if len(hashes) < 4 else f"{len(hashes)} files, {hashes[0]} … {hashes[-1]}"
        for folder, hashes in folders.items()
    }
    return Text("\n").join(Text(line(f"{folder}: {hashes}")) for folder, hashes in texts.items())


def _line(verdict: str, text: str, when: float) -> Text:
    mark, colour = _VERDICTS.get(verdict, ("✗", "red"))
    return Text.assemble("  ", (mark, colour), line(f" {text}"), (line(f"  {_when(when)}"), "dim"))


def _check(check: CheckStatus) -> Text:
    row = _line(check.verdict, f"{check.asset}: {check.name}", check.when)
    row.append(line(f"  {check.verdict}{', does not block' if check.blocking is False else ''}"), style="bold")
    row.append("\n      " + line(check.description) if check.description else "")
    return row


def _complaint(status: Status) -> str:
    broken = [f"{check.asset}:{check.name}" for check in status.checks if not check.holds]
    silent = [production.deployment.url for production in status.production if production.answers is False]
    texts = [
        "" if status.live or status.promoted else "Nothing is in production.",
        f"No answer from {', '.join(silent)}." if silent else "",
        f"Checks that do not hold: {', '.join(broken)}." if broken else "",
    ]
    return " ".join(filter(None, texts))


def _when(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M")
