"""The table of forms: each example is masked in text and found in a file, and what only looks like one stays."""

import time

import pytest

from dagster_mlops.core import credential_forms as table
from dagster_mlops.core.credential_spans import is_secret
from dagster_mlops.core.keys import MARK, without_keys
from dagster_mlops.provenance import mask_credentials

S = "Zq7xK2mN"
ALL = (*table.SEPARATORS, *table.FORMS)
EXAMPLES = [(form.name, text) for form in ALL for text in form.examples]
HARMLESS = [(form.name, text) for form in ALL for text in form.harmless]
CAPITALS = "IOSFODNN7EXAMPLE"


def _diff(text: str, sign: str) -> bytes:
    lines = "\n".join(sign + line for line in text.split("\n"))
    return f"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,9 +1,9 @@\n x = 1\n{lines}\n y = 2\n".encode()


def _has_key(text: str) -> bool:
    return S in text or CAPITALS in text


@pytest.mark.parametrize(("form", "text"), EXAMPLES)
def test_an_example_is_masked_and_found_in_a_file_and_in_both_sides_of_a_diff(form, text):
    text = text.replace("§", S).replace("¤", CAPITALS)
    masked = mask_credentials(text)
    assert not _has_key(masked) and "***" in masked and mask_credentials(masked) == masked
    if form == "equal":  # code compares with a text that is rarely a key
        return
    for before, diff in ((text.encode(), False), (_diff(text, "+"), True), (_diff(text, "-"), True)):
        clean = without_keys(before, "a.yaml", diff=diff)
        assert not _has_key(clean.decode()) and MARK in clean and clean.count(b"\n") == before.count(b"\n")
        assert without_keys(clean, "a.yaml", diff=diff) is clean, "once is enough"


@pytest.mark.parametrize(("form", "text"), HARMLESS)
def test_what_only_looks_like_a_form_is_left_in_text_and_in_files(form, text):
    assert mask_credentials(text) == text
    for name in ("a.yaml", "a.py"):
        assert without_keys(text.encode(), name) == text.encode()


def test_names_are_of_secrets_or_not():
    assert all(is_secret(name, S) for name in table.SECRET_NAMES.split())
    assert not [name for name in table.OTHER_NAMES.split() if is_secret(name, S)]


def test_each_form_can_be_found_by_its_hints_and_has_an_example():
    assert not [form.name for form in ALL if not form.examples]
    for form in table.FORMS:
        assert all(any(hint in text.replace("§", S) for hint in form.hints) for text in form.examples), form.name


def _seconds(use, text: str) -> float:
    start = time.thread_time()
    use(text)
    return time.thread_time() - start


def _in_a_file(text: str) -> bytes:
    return without_keys(text.encode(), "a.yaml")


@pytest.mark.thorough
@pytest.mark.parametrize("use", [mask_credentials, _in_a_file])
@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_the_time_grows_with_the_length_of_a_hostile_text_and_no_faster(use, form):
    for piece in dict.fromkeys(piece for text in form.examples for piece in (text.partition("§")[0], text) if piece):
        small, large = (piece * (size // len(piece)) for size in (10_000, 160_000))
        # Sixteen times the text: a use with a quadratic part would take up to 256 times as long, each time. Once may be
        # slow for other reasons: the first use compiles the forms, and a busy machine takes its time where it likes.
        limit = 64 * max(_seconds(use, small), 0.002)
        assert any(_seconds(use, large) < limit for _ in range(5)), piece


@pytest.mark.thorough
def test_a_megabyte_on_one_line_is_searched_to_its_end():
    hostile = 'password=, key=" --token ' * 40_000
    text = f"{hostile}\npassword='{S}'"
    assert S not in mask_credentials(text) and S.encode() not in _in_a_file(text)
