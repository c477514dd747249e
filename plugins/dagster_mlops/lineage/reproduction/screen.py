"""The recipe of a training, the verdict on its repetition, and the differences of two trainings, on a screen."""

import functools
from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dagster_mlops.core.metadata import shorten
from dagster_mlops.core.screens import conclusion, grid
from dagster_mlops.core.terminal import line
from dagster_mlops.lineage.chain.tree import LOOKS, grouped
from dagster_mlops.lineage.reproduction.comparison import Difference, Explanation, Verdict
from dagster_mlops.lineage.reproduction.recipe import Recipe

_OUTCOMES = {"matched": ("✓", "green"), "differed": ("✗", "red"), "not compared": ("?", "yellow")}
_ASIDE = {"matched": ("·", "dim"), "differed": ("~", "yellow"), "not compared": ("·", "dim")}
_SPARED = {
    "features": "not needed: a dataset holds it",
    "environment": "not needed: the current one is used",
    "code": "perhaps not needed",
}
_SHOWN = 30
_short = functools.partial(shorten, length=40)


def recipe_screen(recipe: Recipe) -> RenderableType:
    """Every ingredient with its bucket; the last line says whether the training can be run again."""
    table = grid("", "dim", "")
    for group in grouped(recipe.ingredients, lambda part: (part.kind, part.bucket, part.reason)):
        first = group[0]
        is_spared = first.kind == "environment" and not first.needed
        mark, colour = _ASIDE["matched"] if is_spared else LOOKS.get(first.bucket, ("?", "yellow"))
        text = Text(line(first.name if len(group) == 1 else f"{len(group)} × {first.name} … {group[-1].name}"))
        if not first.needed:
            text.append(line(f" ({_SPARED.get(first.kind, 'not needed')})"), style="dim")
        if first.bucket != "accessible" and not is_spared:
            text.append(line(f" {first.bucket.upper()}"), style=f"bold {colour}")
            text.append("\n" + line(first.reason), style=colour)
        table.add_row(Text(mark, style=colour), first.kind, text)
    counts = Counter(ingredient.bucket for ingredient in recipe.ingredients if ingredient.needed)
    problems = ", ".join(f"{count} {bucket}" for bucket, count in counts.items() if bucket != "accessible")
    yes = "Everything that this training was made of is there: it can be run again."
    if recipe.complete and recipe.unknown:
        names = ", ".join(part.name for part in recipe.unknown[:6])
        text = f"? It can be run again, but nothing versions {names}: the verdict would be too little to tell."
        return Group(_title(recipe), table, Text(), Text(line(text), style="yellow"))
    last = conclusion(recipe.complete, yes, f"It cannot be run again: of {counts.total()} ingredients, {problems}.")
    return Group(_title(recipe), table, Text(), last)


def verdict_screen(verdict: Verdict) -> RenderableType:
    """Every finding; the last line says whether the training was reproduced."""
    table = grid("", "dim", "", "", "")
    for finding in verdict.findings:
        mark, colour = _OUTCOMES[finding.outcome] if finding.decides else _ASIDE[finding.outcome]
        after = "" if finding.outcome == "matched" and finding.before == finding.after else finding.after
        row = (finding.kind, finding.name, _short(finding.before), Text(line(_short(after)), style=colour))
        table.add_row(Text(mark, style=colour), *row)
    run = verdict.original.run_id[:12]
    if verdict.strength == "too little to tell":
        open_ones = f"not compared: {', '.join(verdict.unknown[:6])}" if verdict.unknown else "nothing was compared"
        same = f" The same: {verdict.evidence}." if verdict.evidence else ""
        text = f"? Too little to tell whether run {run} came out the same; {open_ones}.{same}"
        return Group(table, Text(), Text(line(text), style="yellow"))
    yes = f"Reproduced: run {run} came out the same. Compared: {verdict.evidence}."
    differed = [name for name in verdict.different if name not in verdict.unknown]
    no = f"Not reproduced. Not the same: {', '.join(differed[:6])}."
    return Group(table, Text(), conclusion(verdict.reproduced, yes, no))


def explanation_screen(why: Explanation) -> RenderableType:
    """The differences between two runs, then their metrics; the last line counts the possible causes."""
    parts: list[RenderableType] = [_title(why.before), _title(why.after), Text()]
    if why.causes:
        parts.append(_differences(why.causes))
    if why.metrics:
        parts += [Text("\nmetrics", style="bold"), _differences(why.metrics)]
    if why.unknown:
        text = f"Not compared, because it was not recorded: {', '.join(why.unknown)}."
        parts.append(Text("\n" + line(text), style="yellow"))
    kinds = Counter(cause.kind for cause in why.causes)
    counts = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    last = f"They differ in {counts}." if counts else "Nothing on record differs."
    return Group(*parts, Text("\n" + line(last), style="bold"))


def _title(recipe: Recipe) -> Text:
    version = f"{recipe.version.name}/{recipe.version.version} " if recipe.version else ""
    details = " · ".join(recipe.run.details())
    return Text.assemble((line(f"{version}run {recipe.run.run_id[:12]}"), "bold"), (line(f"  {details}"), "dim"))


def _differences(differences: Sequence[Difference]) -> Table:
    table = grid("dim", "", "red", "green")
    for difference in differences[:_SHOWN]:
        table.add_row(difference.kind, difference.name, _short(difference.before), _short(difference.after))
    if len(differences) > _SHOWN:
        table.add_row("…", f"and {len(differences) - _SHOWN} more (--json has all)", "", "")
    return table
