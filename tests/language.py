"""Plain English, counted: names of locals, first words of docstrings, and a list of words, each with a budget.

    python -m tests.language                                      the library and the pages against their budgets
    python -m tests.language --folder plugins/dagster_mlops/dvc   each place in a folder, with file and line

The rules, and what to write instead, are in CONTRIBUTING.md. A budget may only fall: after a cleanup, lower it to what
the first command prints.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "plugins" / "dagster_mlops"
# Not CONTRIBUTING.md, which holds the list itself.
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Participles, adverbs and pronouns that say nothing of what a name holds.
_RIDDLES = """
again alone asked begun both carried chosen done drawn found given gone happened held here
judged kept known listed lost made meant named now once one others own said settled shown taken
then there told twice wanted whole written
"""
RIDDLES = frozenset(_RIDDLES.split())
RIDDLE_OPENINGS = ("What", "Whatever", "Which", "Whether", "Who", "Whose", "Where", "When", "How", "Why")
# A pattern to avoid, and what to write.
WORDS = {
    r"(?<!here )\bis no (?!longer\b|more\b|less\b|one\b)": "is not a valid …, is not a …",
    r"\bof then\b": "recorded (the run's recorded lock file)",
    r"\bof now\b": "current",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(otherwise|else) than\b": "differently from, other than",
    r"\bof itself\b": "by itself",
    r"\bfor ever\b": "forever",
    r"\bwhom\b": "who, that",
    r"\bnobody\b": "no one",
    r"\bsomebody\b": "someone",
    r"\bshall\b": "must, will",
    r"\btold\b": "sent, returned, logged, reported",
    r"(?<![a-z])moments?(?![a-z])": "event timestamp, time",
    r"\bma(ke|kes|de|king) (\w+ )?again\b": "rebuild, rerun",
}


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    measure: str
    file: Path
    line: int
    text: str


@dataclass(frozen=True)
class Measure:
    """One rule over a set of files: how many places break it, of how many it applies to."""

    findings: tuple[Finding, ...]
    total: int

    @property
    def percent(self) -> float:
        return 100 * len(self.findings) / self.total if self.total else 0.0


# Percent of bindings, percent of docstrings, and number of lines. Lower them, never raise them.
BUDGETS = {"names": 0.1, "module docstrings": 0, "docstrings": 0, "words": 0, "pages": 0}
COUNTS = ("words", "pages")


def _bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and line of each variable, argument and caught error that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno


def _docstrings(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Measure, text and line of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                is_module = isinstance(node, ast.Module)
                yield "module docstrings" if is_module else "docstrings", text, 1 if is_module else node.lineno


def measure(files: list[Path]) -> dict[str, Measure]:
    """Count each measure over Python files and Markdown pages."""
    findings: dict[str, list[Finding]] = {name: [] for name in BUDGETS}
    totals = dict.fromkeys(BUDGETS, 0)
    for file in files:
        source = file.read_text()
        listed_words = "pages" if file.suffix == ".md" else "words"
        for number, text in enumerate(source.splitlines(), start=1):
            totals[listed_words] += 1
            for pattern, plain in WORDS.items():
                if re.search(pattern, text, re.IGNORECASE):
                    finding = Finding(listed_words, file, number, f"{text.strip()}   → {plain}")
                    findings[listed_words].append(finding)
        if file.suffix == ".md":
            continue
        tree = ast.parse(source)
        for name, line in _bindings(tree):
            totals["names"] += 1
            if name.strip("_") in RIDDLES:
                findings["names"].append(Finding("names", file, line, name))
        for kind, text, line in _docstrings(tree):
            totals[kind] += 1
            if re.match(rf"({'|'.join(RIDDLE_OPENINGS)})\b", text):
                findings[kind].append(Finding(kind, file, line, text.splitlines()[0]))
    return {name: Measure(tuple(findings[name]), totals[name]) for name in BUDGETS}


def files_below(path: Path) -> list[Path]:
    """Python files and Markdown pages of a folder, or the one file."""
    return sorted(file for file in path.rglob("*") if file.suffix in (".py", ".md")) if path.is_dir() else [path]


def value_of(name: str, measured: Measure) -> float:
    """The number that a budget bounds: a share in percent, or a count."""
    return len(measured.findings) if name in COUNTS else measured.percent


def main() -> int:
    """Print the measures; 1 when one is over its budget."""
    parser = argparse.ArgumentParser(prog="python -m tests.language", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="List each place in this folder or file.")
    folder: Path | None = parser.parse_args().folder
    if folder is not None and not folder.exists():
        parser.error(f"{folder} does not exist")
    measures = measure(files_below(folder) if folder else [*files_below(LIBRARY), *PAGES])
    over_budget = []
    for name, measured in measures.items():
        if folder is not None:
            for finding in sorted(measured.findings, key=lambda finding: (str(finding.file), finding.line)):
                print(f"{finding.file}:{finding.line}: {name}: {finding.text}")
        value, budget = value_of(name, measured), BUDGETS[name]
        unit = " lines" if name in COUNTS else f" % of {measured.total}"
        print(f"{name}: {value:.4g}{unit}" + ("" if folder else f" (budget {budget})"))
        if folder is None and value > budget:
            over_budget.append(name)
    if over_budget:
        print(
            f"Over budget: {', '.join(over_budget)}. List the places with --folder; the rules are in CONTRIBUTING.md."
        )
    return 1 if over_budget else 0


if __name__ == "__main__":
    sys.exit(main())
