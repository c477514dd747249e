"""The counter of plain English: it finds what it should, leaves plain English alone, and its budgets hold."""

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from dagster_mlops import cli
from tests import language

ROOT = Path(__file__).parents[2]


def _texts(folder: Path, source: str, measure: str) -> list[str]:
    file = folder / "module.py"
    file.write_text(source)
    return [finding.text for finding in language.measure([file])[measure].findings]


def test_names_that_say_nothing_of_what_they_hold_are_listed(tmp_path):
    source = """
def read(asked, path):
    found = [one for one in path]
    rows, kept = found, len(found)
    try:
        current_holder = (told := path.read_text())
    except OSError as lost:
        raise ValueError(rows, kept, current_holder, told) from lost
"""
    names = _texts(tmp_path, source, "names")
    assert sorted(names) == ["asked", "found", "kept", "lost", "one", "told"]


def test_docstrings_that_open_with_a_question_word_are_listed(tmp_path):
    source = '''"""What a folder serves right now."""

class Status:
    """Status of a folder."""

    def ready(self):
        """Whether it serves."""

    def whatsoever(self):
        """Whichever one asks for."""
'''
    assert _texts(tmp_path, source, "module docstrings") == ["What a folder serves right now."]
    assert _texts(tmp_path, source, "docstrings") == ["Whether it serves."]


@pytest.mark.parametrize(
    ("text", "is_listed"),
    [
        ("'x' is no quantity.", True),
        ("There is no run.", False),
        ("It is no longer needed.", False),
        ("the lock file of then", True),
        ("of then-unknown origin", True),
        ("Mend it.", True),
        ("recommended", False),
        ("the moment of an event", True),
        ("stored_moments(view)", True),
        ("a momentary failure", False),
        ("Make it again.", True),
        ("Try it again.", False),
        ("a shallow clone", False),
        ("somebody else", True),
    ],
)
def test_words_to_avoid_are_listed_and_plain_ones_are_not(tmp_path, text, is_listed):
    assert bool(_texts(tmp_path, f"# {text}\n", "words")) == is_listed


def test_the_library_is_within_its_budgets_and_a_folder_is_listed_with_lines():
    library = subprocess.run([sys.executable, "-m", "tests.language"], cwd=ROOT, capture_output=True, text=True)
    assert library.returncode == 0, library.stdout
    assert all(f"{name}: " in library.stdout for name in language.BUDGETS)
    command = [sys.executable, "-m", "tests.language", "--folder", "tests/language.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"^tests/language\.py:\d+: words: ", listed.stdout, re.MULTILINE)  # it holds the list itself


def test_budgets_are_below_the_first_measurement():
    first = {"names": 6.9, "module docstrings": 26.8, "docstrings": 15.7, "words": 402, "pages": 62}
    assert {name: budget for name, budget in language.BUDGETS.items() if budget > first[name]} == {}


def test_contributing_says_what_to_write_instead():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert [plain for plain in language.WORDS.values() if plain not in page] == []


def test_every_option_of_every_command_has_help():
    apps = [cli.app, *(entry.load() for entry in entry_points(group="dagster_mlops.commands"))]
    commands = [typer.main.get_command(app) for app in apps]
    without_help = [
        f"{command.name} {parameter.name}"
        for group in commands
        for command in getattr(group, "commands", {}).values()
        for parameter in command.params
        if parameter.name != "help" and not getattr(parameter, "help", None)
    ]
    assert len(commands) >= 4
    assert without_help == []
