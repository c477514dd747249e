"""Data is shown as it is: in Markdown, in a terminal and in a spreadsheet no label of it is an order."""

import ast
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from typer.testing import CliRunner

from dagster_mlops.core import markdown, terminal
from dagster_mlops.core.commands import errors_shown
from dagster_mlops.core.metadata import link
from dagster_mlops.core.pictures import Picture, failed, gallery
from dagster_mlops.core.spreadsheet import csv_text
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.evaluation.measure import Estimate, Evaluation, Part
from dagster_mlops.evaluation.model_card import Training, model_card
from dagster_mlops.lineage.chain.tree import chain_tree
from dagster_mlops.lineage.chain.walk import Link
from dagster_mlops.lineage.production.overview import CheckStatus, Promoted, Status
from dagster_mlops.lineage.production.screen import status_screen
from dagster_mlops.lineage.reproduction.code import Ingredient
from dagster_mlops.lineage.reproduction.comparison import Difference, Explanation, Finding, Verdict
from dagster_mlops.lineage.reproduction.recipe import Recipe
from dagster_mlops.lineage.reproduction.screen import explanation_screen, recipe_screen, verdict_screen
from dagster_mlops.provenance import Dataset, ModelVersion, Record, Ref, Report, TrainingRun
from tests.support.hostile import LABELS

LIBRARY = Path(__file__).parents[2] / "plugins" / "dagster_mlops"
labels = pytest.mark.parametrize("label", LABELS, ids=range(len(LABELS)))

# --- Markdown


class Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.addresses: list[str] = []
        self.shown = ""
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(source))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.shown += data


def one_line(label: str) -> str:
    return " ".join(terminal.line(label).split())


@labels
def test_a_label_is_text_in_markdown(label):
    pages = [
        (markdown.text(label), {"p"}),
        (markdown.code(label), {"p", "code"}),
        (markdown.formatted("- {}", label), {"ul", "li"}),
        (markdown.formatted("## {}", label), {"h2"}),
        (markdown.table([{"a": label, label: "b"}]), {"table", "thead", "tbody", "tr", "th", "td"}),
    ]
    for source, elements in pages:
        page = Page(source)
        assert page.elements == elements, source
        assert one_line(label) in " ".join(page.shown.split()), source
    # By themselves, addresses are links in the Markdown of GitHub.
    assert not re.search(r"(?<!\\)://|www\.|\w@\w", markdown.text(label))


@labels
def test_a_block_of_code_ends_where_it_ends(label):
    page = Page(markdown.block(f"run {label}\n{label}", "sh") + "\n\nafter")
    assert page.elements == {"pre", "code", "p"} and page.shown.endswith("\nafter\n")


@given(st.text(alphabet="`*_[]()<>|~$&;:/#-=+.!\\ \n1ax@w"))
@settings(max_examples=300, deadline=None)
def test_any_text_of_marks_is_text(label):
    page = Page(markdown.formatted("x {}", label))
    assert page.elements == {"p"} and " ".join(page.shown.split()) == " ".join(f"x {label}".split())


@labels
def test_a_link_and_a_picture_have_addresses_of_ours_only(label):
    pictures = [Picture(label, b"\x89PNG"), Picture(label, problem=label), failed(label, ValueError(label))]
    value = gallery(pictures)
    assert value and value.md_str
    page = Page(value.md_str)
    assert page.elements <= {"p", "img", "code"} and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    page = Page(markdown.link(label, "https://host/run?a=(1)"))
    assert page.elements == {"p", "a"} and page.addresses == ["https://host/run?a=%281%29"]
    assert Page(markdown.link("run", label)).addresses == [] and link("x/url", label) == {}


@labels
def test_a_model_card_holds_its_form_with_any_name(label):
    def card(label: str) -> str:
        estimate = Estimate(0.5, 0.4, 0.6)
        part = Part(label, 9, metrics={label: estimate}, baselines={label: {label: estimate}})
        result = Evaluation(
            label, label, "r", "binary", label, label, label, 3, label, 10, 0.9, 0, part, (part,),
            no_rival=label, warning=label, importance={label: 0.1},
        )  # fmt: skip
        run = TrainingRun(
            tool="mlflow", run_id=label, tracking_uri="u", code_commit=label, dagster_asset=label, dagster_run_id=label,
            dagster_partition=label, python=label, platform=label, lock_hash=label, feature_service=label,
        )  # fmt: skip
        version = ModelVersion(
            tool="mlflow", name=label, version=label, run_id="r", tracking_uri="u", datasets={label: label}
        )
        training = Training(
            origin=label, record=run, params={label: label}, container=label, gpu=label, licences={"a": label}
        )
        return model_card(version, training, result, {"Use": "**Ours**: [x](https://host)."})

    hostile, harmless = Page(card(label)), Page(card("late"))
    assert hostile.elements == harmless.elements and hostile.addresses == ["https://host"]
    headings = [re.findall(r"(?m)^#+ (?!.*(?:late|version)).*", card(name)) for name in (label, "late")]
    assert headings[0] == headings[1]


# --- a terminal


def screens(label: str) -> dict[str, Any]:
    dataset = Dataset(path=f"{label}/x", md5="9f", repo="r", dagster_asset=label, tool_facts={"note": label})
    link = Link(Ref(label, label, label), "deleted", reason=label, source="carried")
    other = Record(of=Ref("x", label, label), tool_facts={label: label})
    chain = Link(dataset.ref, "accessible", record=dataset, source="tool", upstream=(link, *[link] * 2))
    run = TrainingRun(tool="mlflow", run_id=label, tracking_uri="u", experiment=label, dagster_asset=label)
    version = ModelVersion(tool="mlflow", name=label, version="1", run_id="r", tracking_uri="u")
    things = {"package": None, "model_version": version, "training_run": run, "training_set": None}
    promoted = Promoted(since=0.0, **things, datasets=(dataset,), alias=label)
    report = Report(tool="evidently", id=label, drifted=(label,))
    checks = (CheckStatus(label, label, "failed", 0.0, True, label), CheckStatus(label, label, "passed", 0.0))
    parts = tuple(Ingredient("data", label, bucket, label) for bucket in ("accessible", "deleted"))
    recipe = Recipe(run, version, chain, {}, None, cast("Any", parts))
    differences = (Difference(label, label, label, label),)
    findings = (Finding("metric", label, "differed", label, label), Finding("file", label, "not compared", label))
    return {
        "trace": chain_tree(chain),
        "status": status_screen(Status((), (promoted,), checks, (report,), (label,), (other,))),
        "recipe": recipe_screen(recipe),
        "verdict": verdict_screen(Verdict(run, run, findings)),
        "explain": explanation_screen(Explanation(recipe, recipe, differences, differences, (label,))),
    }


def printed(screen: Any) -> str:
    console = Console(highlight=False, file=io.StringIO(), width=4000, force_terminal=False)
    console.print(screen)
    return cast("io.StringIO", console.file).getvalue()


@labels
def test_a_label_begins_no_line_and_moves_no_cursor_on_a_screen(label):
    harmless = {name: printed(screen) for name, screen in screens("late").items()}
    for name, screen in screens(label).items():
        text = printed(screen)
        assert text.count("\n") == len(text.splitlines()) == harmless[name].count("\n"), name
        assert all(char.isprintable() or char == "\n" for char in text), name
        assert " ".join(terminal.line(label)[:20].split()) in " ".join(text.split()), name


@labels
def test_a_label_in_an_error_begins_no_line_of_ours(label):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        with errors_shown():
            raise DagsterMlopsError(f"{label!s} is not there.\nCorrect it.")

    lines = CliRunner().invoke(app, []).stderr.split("\n")
    assert lines[0].startswith("dagster-mlops: ") and "  Correct it." in lines
    assert all(line.startswith("  ") or not line for line in lines[1:])
    assert all(char.isprintable() for line in lines for char in line)


# --- a spreadsheet


@pytest.mark.parametrize(
    "label",
    ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", "=HYPERLINK(1)", "\n=1", " =1", "\uff1d1"],
)
def test_a_label_is_no_formula(label):
    header, cells = csv.reader(io.StringIO(csv_text([{"slice": label, label: -0.5}]), newline=""))
    assert cells == [f"'{label}", "-0.5"] and header == ["slice", f"'{label}"]


@pytest.mark.parametrize("separator", ";\t")
def test_a_label_is_one_cell_for_a_spreadsheet_with_another_separator(separator):
    text = csv_text([{"slice": f"UA{separator}=1+1"}, {"slice": "b"}])
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=separator)) == [
        ["slice"],
        [f"UA{separator}=1+1"],
        ["b"],
    ]


@pytest.mark.parametrize("char", "\u00ad\u034f\u115f\u2065\u2800\u3164\ufff9\uffa0\ue000\U000e0101\U0001d173")
def test_a_name_with_something_that_cannot_be_seen_does_not_look_like_another(char):
    assert terminal.line(f"cham{char}pion") == f"cham{char.encode('unicode_escape').decode()}pion"


def test_what_is_read_is_left_as_it_is():
    text = "naïve Ångström 12\u00a0345\u202f€ 東京\u3000駅 👩\u200d🔬 ❤\ufe0f می\u200cخواهم"
    assert terminal.line(text) == text


# --- the rule


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


FILES = {str(file.relative_to(LIBRARY)): file for file in LIBRARY.rglob("*.py")}


def is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def test_markdown_and_html_for_readers_are_written_in_one_module_each():
    for name, file in FILES.items():
        for function, call in calls(file):
            place = f"{name}:{call.lineno}"
            if re.search(r"MetadataValue\.md$|MarkdownMetadataValue$", function):
                assert name == "core/markdown.py", place
            if function.endswith(("get_html_str", "save_html", "to_html", "to_markdown")):
                assert name == "evidently/upstream.py", place
            if name != "core/markdown.py" and re.search(r"(^|\.)Markdown$", function):
                # Ours, except the sections of a card, which its author writes in Markdown.
                markdown_of_ours = ["section.strip()", "registered", "joined(parts) + '\\n'"]
                assert all(is_constant(part) or ast.unparse(part) in markdown_of_ours for part in call.args), place
            if re.search(r"(^|\.)formatted$", function):
                assert is_constant(call.args[0]) or isinstance(call.args[0], ast.Name), place


def test_no_markdown_is_put_together_from_data_beside_its_module():
    """F-strings with marks, in the files that write Markdown."""
    writing = [
        name
        for name, file in FILES.items()
        if re.search(r"core(\.markdown)? import .*(markdown|formatted)", file.read_text())
    ]
    assert len(writing) >= 7
    for name in writing:
        for node in ast.walk(ast.parse(FILES[name].read_text())):
            if isinstance(node, ast.JoinedStr):
                constants = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                marks = re.search(r"\]\(|!\[|\*\*|^#|^\||```", constants)
                assert not marks, f"{name}:{node.lineno}: {constants}"


def test_what_is_printed_goes_through_the_module_for_terminals():
    """`echo` takes constants, JSON, which is ASCII, and what `line` or `lines` returns."""
    safe = re.compile(r"lines?\(.*\)|json\.dumps\(.*\)|.*_table\(.*\).*", re.DOTALL)
    for name, file in FILES.items():
        for function, call in calls(file):
            if function in ("typer.echo", "click.echo", "print") and not name.rpartition("/")[2].startswith("_"):
                [text] = call.args
                ours = is_constant(text) or (isinstance(text, ast.Name) and text.id == "hint")
                counts = ast.unparse(text) == "f'stopped {stop_all(state_dir)} process(es)'"
                version = ast.unparse(text) == "f'dagster-mlops {__version__}'"
                assert ours or counts or version or safe.fullmatch(ast.unparse(text)), f"{name}:{call.lineno}"


def is_safe(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "line"
    if isinstance(node, ast.BinOp):
        return is_safe(node.left) and is_safe(node.right)
    if isinstance(node, ast.IfExp):
        return is_safe(node.body) and is_safe(node.orelse)
    if isinstance(node, ast.Tuple):
        return is_safe(node.elts[0])
    return is_constant(node) or (isinstance(node, ast.Name) and node.id == "mark")


def test_screens_are_made_of_lines():
    for name in ("chain/tree.py", "production/screen.py", "reproduction/screen.py"):
        for function, call in calls(LIBRARY / "lineage" / name):
            is_text = function in ("Text", "Text.assemble") or re.search(r"(label|text|row)\.append$", function)
            if is_text:
                assert all(map(is_safe, call.args)), f"{name}:{call.lineno}"
