"""`dagster-mlops history`: what it answers, and from where; what it finds when one place was changed or lost."""

import dataclasses
import hashlib
import shutil
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from dagster_mlops import cli
from dagster_mlops.promotion.history.entry import read_entry
from dagster_mlops.promotion.history.envelope import SIGNING_KEY, STATEMENT, seal
from tests.support import known_warnings
from tests.support.promotions import MODEL, promoted

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return promoted(tmp_path_factory.mktemp("template"), 0.70, 0.75)


@pytest.fixture
def world(template):
    """The same places, as they were before a test: what is named in them stays valid."""
    yield template
    template.reset()


def sql(world, *statements):
    with closing(sqlite3.connect(world.file)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def run_of(world):
    return world.client.get_registered_model(MODEL).tags["dagster_mlops.history"].split()[0]


def purge(world):
    """Take the run of the history out of MLflow, as `mlflow gc` does."""
    run = run_of(world)
    sql(world, *(f"delete from {table} where run_uuid = '{run}'" for table in ("params", "tags", "runs")))
    return run


def test_history_shows_the_moves_newest_first(world):
    shown = world.command("history", MODEL)
    assert shown.exit_code == 0, shown.output
    first, second = shown.stdout.index("1 → 2"), shown.stdout.index("none → 1")
    assert first < second and "sqlite:////" in shown.stdout.replace("\n", "")
    answer = world.json("history", MODEL)
    assert [(move["before"], move["after"], move["kind"]) for move in answer["moves"]] == [
        ("", "1", "promotion"),
        ("1", "2", "promotion"),
    ]
    assert answer["moves"][1]["facts"]["values"]["candidate"] == 0.75 and answer["notes"] == []
    other = world.command("history", MODEL, "--alias", "challenger")
    assert other.exit_code == 2 and "about 'challenger'" in other.stderr and "champion" in other.stderr


def test_the_version_at_some_time(world):
    moves = world.json("history", MODEL)["moves"]

    def version(at):
        [held] = world.json("history", MODEL, "--at", at)["holders"]
        return held["version"]

    assert version(moves[0]["at"]) == "1" and version(moves[1]["at"]) == "2"
    assert version(moves[1]["at"][:10]) == "2" and version("2020-01-01") == ""
    assert version("9999-12-31") == "2"
    for at in ("yesterday", "0001-01-01T00:00+14:00", "9999-12-31T23:59-01:00"):
        wrong = world.command("history", MODEL, "--at", at)
        assert wrong.exit_code == 2 and "2026-05-01T12:00" in wrong.stderr


def test_a_move_by_hand_is_told_before_and_after_it_is_written_down(world):
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    [note] = world.json("history", MODEL)["notes"]
    assert "version 1 holds it now" in note
    found = world.command("history", "verify", MODEL)
    assert found.exit_code == 1 and "moved by hand" in found.stdout
    world.promote("1")
    answer = world.json("history", MODEL)
    assert answer["moves"][-1]["kind"] == "by hand" and "time at which it was noticed" in answer["notes"][0]
    [held] = world.json("history", MODEL, "--at", answer["moves"][1]["at"])["holders"]
    assert held["version"] == "2" and "or already version 1" in held["note"]
    assert world.command("history", "verify", MODEL).exit_code == 0


def test_without_its_registry_the_event_log_answers(world):
    (world.file).rename(world.folder / "lost.db")
    try:
        answer = world.json("history", MODEL)
        verified = world.command("history", "verify", MODEL)
    finally:
        (world.folder / "lost.db").rename(world.file)
    assert answer["source"] == "Dagster's event log" and len(answer["moves"]) == 2
    assert "not on this machine" in answer["notes"][0]
    assert verified.exit_code == 2 and "not on this machine" in verified.stderr


def test_verify_names_what_was_changed(world):
    holds = world.command("history", "verify", MODEL, "--files")
    assert holds.exit_code == 0 and "2 entries" in holds.stdout, holds.output
    files = world.files("2")
    (files / "model.json").write_text("{}")
    assert world.json("history", "verify", MODEL)["holds"]  # only --files reads them
    changed = world.json("history", "verify", MODEL, "--files")
    assert [finding["store"] for finding in changed["findings"]] == ["version 2"]
    sql(world, "update params set value = '0123456789abcdef 1 {}' where key = '00000001'")
    changed = world.command("history", "verify", MODEL)
    assert changed.exit_code == 1 and "entry 1" in changed.stdout and "entry 0" not in changed.stdout


@pytest.mark.parametrize("how", [pytest.param("deleted", marks=pytest.mark.thorough), "purged", "entry"])
def test_restore_gives_the_registry_what_only_the_event_log_has(world, how):
    if how == "entry":
        sql(world, "delete from params where key = '00000000'")
    else:
        run = purge(world) if how == "purged" else run_of(world)
        if how == "deleted":
            world.client.delete_run(run)
        refused = world.command("history", "verify", MODEL)
        assert refused.exit_code == 1 and f"history restore {MODEL}" in " ".join(refused.stdout.split())
        assert world.json("history", MODEL)["source"] == "Dagster's event log"
    written = world.json("history", "restore", MODEL)["written"]
    assert [*written.values()] == [{"entry": [0], "deleted": [], "purged": [0, 1]}[how], []]
    assert world.json("history", "verify", MODEL)["holds"]
    world.promote(world.train(0.8))  # it goes on from there
    assert [move["after"] for move in world.json("history", MODEL)["moves"]] == ["1", "2", "3"]
    assert world.json("history", "verify", MODEL)["holds"]


def test_restore_brings_a_new_event_log_the_history(world):
    home = world.folder / "new"
    home.mkdir()
    (home / "dagster.yaml").touch()
    options = ["--registry", world.uri]
    written = world.command("history", "restore", MODEL, *options, home=home)
    assert written.exit_code == 0 and "2 written" in written.stdout, written.output
    purge(world)
    shown = world.command("history", MODEL, *options, home=home)
    assert shown.exit_code == 0 and "1 → 2" in shown.stdout
    shutil.rmtree(home)


def test_restore_replaces_nothing(world):
    sql(world, "update params set value = '0123456789abcdef 1 {}' where key = '00000001'")
    damaged = world.command("history", "restore", MODEL)
    assert damaged.exit_code == 2 and "differ in entry 1" in damaged.stderr, damaged.output
    with world.resource.models() as models:
        entry, _ = read_entry(models.history(MODEL)[0])
    forged = seal(STATEMENT, dataclasses.replace(entry, why="forged").statement(), None)
    sha = hashlib.sha256(forged.encode()).hexdigest()[:16]
    sql(world, f"update params set value = '{sha} 1 {forged}' where key = '00000000'")
    differing = world.command("history", "restore", MODEL)
    assert differing.exit_code == 2 and "differ in entry 0" in differing.stderr, differing.output


def test_a_key_signs_and_verifies(world, monkeypatch):
    file = world.folder / "signing.pem"
    made = _command("history", "key", str(file))
    assert made.exit_code == 0 and file.stat().st_mode & 0o777 == 0o600, made.stderr
    again = _command("history", "key", str(file))
    assert again.exit_code == 2 and "not replaced" in again.stderr
    public = ["--key", f"{file}.pub"]
    monkeypatch.setenv(SIGNING_KEY, str(file))
    world.promote(world.train(0.8))
    monkeypatch.delenv(SIGNING_KEY)
    unsigned = world.command("rollback", MODEL, "--reason", "late orders")
    assert unsigned.exit_code == 2 and f"{SIGNING_KEY} is not set here" in unsigned.stderr and world.holder() == "3"
    assert ": 1 of " in world.json("history", "verify", MODEL, *public)["strength"]
    sql(world, "update params set value = replace(value, '\"sig\":\"', '\"sig\":\"AAAA') where key = '00000002'")
    changed = world.json("history", "verify", MODEL, *public)
    assert {finding["entry"] for finding in changed["findings"]} == {2}


def _command(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def test_unknown_models_and_registries_are_told_the_way(world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    unknown = world.command("history", "delays", "--registry", world.uri)
    assert unknown.exit_code == 2 and "'delays'" in unknown.stderr
    nowhere = world.command("history", "delays")
    assert nowhere.exit_code == 2 and "--registry PLACE" in nowhere.stderr
    assert world.command("history").exit_code == 2  # the help
