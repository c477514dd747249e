"""Pictures for Dagster's pages: small, inline, and never the reason for a failure."""

import base64
import doctest
import io
import re

import dagster as dg
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dagster_mlops.core import pictures
from dagster_mlops.core.extras import extra
from dagster_mlops.core.pictures import MOST_BYTES, Picture, drawn, failed, gallery, label, new_figure

pytestmark = pytest.mark.pixels


def noise(inches: float) -> Figure:
    figure = new_figure(inches, inches, tool="mlflow")
    figure.subplots().imshow(np.random.default_rng(0).random((400, 400, 3)))
    return figure


def encoded(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


def opened(text: str) -> tuple[str, Image.Image]:
    [(title, content)] = re.findall(r"^!\[(.*)\]\(data:image/[a-z]+;base64,(.+)\)$", text)
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return title, image


def test_a_figure_is_an_image_in_markdown():
    figure = new_figure(4, 3, tool="mlflow")
    figure.subplots().plot([1, 2])
    title, image = opened(drawn("loss", lambda: figure, tool="mlflow").markdown())
    assert (title, image.size) == ("loss", (400, 300))


def test_a_large_figure_is_drawn_with_fewer_dots_until_it_is_small_enough():
    text = drawn("noise", lambda: noise(4), tool="mlflow").markdown()
    assert len(text) < MOST_BYTES + 100 and opened(text)[1].width <= 400


def test_a_large_image_file_is_made_smaller_and_a_small_one_is_shown_as_it_is():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), "uint8"))
    text = drawn("camera", lambda: encoded(picture, "PNG"), tool="mlflow").markdown()
    assert len(text) < MOST_BYTES + 100 and 100 < opened(text)[1].width <= 800
    content = encoded(picture.resize((50, 50)), "JPEG")
    small = drawn("thumb", lambda: content, tool="mlflow")
    assert small.content == content and "data:image/jpeg;" in small.markdown()
    assert "data:image/svg+xml;" in drawn("vector", lambda: b"<svg/>", tool="mlflow").markdown()


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        (lambda: b"<svg>" + bytes(60_000), "UnidentifiedImageError"),
        (lambda: b"", "it has 0 bytes"),
        (lambda: b"no image" * 10_000, "UnidentifiedImageError"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: open("http://me:secret@host/a.png").read(), "FileNotFoundError"),  # noqa: SIM115
    ],
    ids=["drawing too large", "empty file", "no image", "crash", "missing"],
)
def test_what_cannot_be_shown_is_a_line_that_says_why(draw, problem):
    text = drawn("curve", draw, tool="mlflow").markdown()
    assert text.startswith("curve is not drawn: ") and problem in text and "secret" not in text and len(text) < 600


def test_a_missing_library_is_a_line_with_the_command_that_installs_it():
    def draw() -> Figure:
        return extra("no_such_library", extra="evidently").Figure()

    assert "pip install 'dagster-mlops[evidently]'" in drawn("curve", draw, tool="evidently").markdown()


def test_several_pictures_are_one_value_and_nothing_to_draw_is_none():
    assert gallery([]) is None and gallery([drawn("empty", lambda: None, tool="mlflow")]) is None
    value = gallery([Picture("one", b"\x89PNG"), failed("two", ValueError("no points"))])
    assert isinstance(value, dg.MarkdownMetadataValue) and value.md_str is not None
    assert value.md_str.split("\n\n")[1] == "two is not drawn: `ValueError: no points`"


def test_a_label_is_short_and_holds_what_the_font_can_draw(recwarn):
    assert label("航空 $x$", 40) == r"?? \$x\$" and len(label("a" * 99)) == 14
    figure = new_figure(2, 2, tool="mlflow")
    figure.subplots().set_title(label("航空 $x"))
    assert drawn("title", lambda: figure, tool="mlflow").content and not recwarn.list


def test_the_examples_in_the_docstrings_run():
    outcome = doctest.testmod(pictures)
    assert outcome.attempted and not outcome.failed
