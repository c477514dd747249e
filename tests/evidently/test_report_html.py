"""Names and values of the data run no code in the browser of the reader of a report."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from dagster_mlops.core.html import figures_without_links, json_in_script
from dagster_mlops.errors import MonitoringError
from dagster_mlops.evidently import EvidentlyResource, upstream
from dagster_mlops.evidently.resource import quiet
from tests.support.hostile import LABELS, SCRIPT

with quiet():
    from evidently.metrics import ValueDrift

# Of no more than one line each: a label of a figure is one. A lone surrogate is not a value of a dataframe's file.
CATEGORIES = [label for label in LABELS if label != "\ud800"]
COLUMN = f'<img src=x onerror={SCRIPT}></script><script>{SCRIPT}</script><a href="http://evil.example">x</a>'
BROWSER = next(filter(None, map(shutil.which, ["chromium-headless-shell", "chromium", "google-chrome"])), "")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def report(folder: Path, categories: list[str], column: str) -> Path:
    frame = pd.DataFrame({column: range(len(categories) * 5), "category": categories * 5})
    tool = EvidentlyResource(reports=str(folder))
    data = tool.dataset(frame)
    snapshot = tool.run([ValueDrift(column=name) for name in frame], data, data, tags=categories[:1])
    return tool.save(snapshot, folder="drift", name="one")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return report(tmp_path_factory.mktemp("reports"), CATEGORIES, COLUMN)


def test_data_adds_no_element_to_a_report(hostile, tmp_path):
    harmless = report(tmp_path, [f"a{n}" for n in range(len(CATEGORIES))], "b")
    tags, expected = (Page(file.read_text()).tags for file in (hostile, harmless))
    assert [tag for tag, _ in tags] == [tag for tag, _ in expected] and len(tags) > 8
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    text = hostile.read_text()
    assert json_in_script(CATEGORIES[0]) in text and not any(
        char in text.split("var global")[0] for char in "\u2028\u2029"
    )


def test_a_report_runs_its_scripts_only_and_sends_nothing(hostile):
    [policy] = [attrs["content"] or "" for tag, attrs in Page(hostile.read_text()).tags if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-eval' 'sha256-")
    assert "'unsafe-inline'" not in policy.partition("style-src")[0] and policy.count("sha256-") == 4


def test_a_label_of_a_figure_is_not_a_link_and_keeps_its_marks():
    figure = {"data": [{"x": LABELS, "name": "<b>a</b><br>b<extra></extra> 1 < 2"}], "layout": {"title": COLUMN}}
    page = figures_without_links({"widgets": [{"params": figure, "title": COLUMN}]})
    [widget] = page["widgets"]
    assert widget["title"] == COLUMN, "other parts of the page show text as it is"
    [trace] = widget["params"]["data"]
    assert trace["name"] == "<b>a</b><br>b<extra></extra> 1 &lt; 2"
    assert not re.search(r"(?i)<\s*(a|span|img|svg|script)\b", json.dumps(widget["params"]))
    assert [label.replace("&lt;", "<") for label in trace["x"]] == [label.replace("&lt;", "<") for label in LABELS]


@pytest.mark.skipif(not BROWSER, reason="no headless Chromium")
def test_a_browser_shows_the_report_and_runs_nothing_of_the_data(hostile):
    options = ["--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom"]
    process = subprocess.run([BROWSER, *options, hostile.as_uri()], capture_output=True, text=True, timeout=120)
    root = re.search("<html[^>]*>", process.stdout)
    assert root and "hacked" not in root[0]
    assert "Mui" in process.stdout and "CONSOLE" not in process.stderr  # it is drawn, and the policy refused nothing
    assert process.stdout.count('class="xtick"') > len(CATEGORIES), "the figures are drawn"
    links = [dict(attrs) for tag, attrs in Page(process.stdout).tags if tag == "a"]
    addresses = {attrs[name] for attrs in links for name in attrs if name.endswith("href")}
    assert addresses <= {"https://plotly.com/"} and len(links) > 3  # the buttons of a figure


def test_a_page_of_another_form_is_refused_with_the_remedy():
    class Snapshot:
        def get_html_str(self, as_iframe: bool) -> str:
            return "<html><head></head><script>const data = {}</script></html>"

    with pytest.raises(MonitoringError, match="Install a version of Evidently"):
        upstream.safe_html(Snapshot())
