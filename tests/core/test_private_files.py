"""Files with personal data or secrets are their owner's, or those of the group that a folder is shared with."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_mlops.core.files import exclusive, own_folder, write_atomically
from dagster_mlops.core.private_files import open_private, private_folder, private_umask


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0, 0o002, 0o022, 0o077], autouse=True)
def _umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_a_private_file_is_its_owners_whatever_the_umask(tmp_path):
    tmp_path.chmod(0o755)
    write_atomically(tmp_path / "state" / "record", "a name", private=True)
    os.close(open_private(tmp_path / "log", os.O_WRONLY | os.O_APPEND))
    assert mode(tmp_path / "state") == 0o700
    assert mode(tmp_path / "state" / "record") == mode(tmp_path / "log") == 0o600
    assert mode(own_folder(tmp_path / "reports")) == 0o700


def test_a_folder_that_its_group_may_write_to_shares_what_is_in_it(tmp_path):
    tmp_path.chmod(0o2770)
    write_atomically(tmp_path / "state" / "record", "a name", private=True)
    with exclusive(tmp_path / "state" / "lock", 1):
        pass
    assert mode(tmp_path / "state") == 0o2770
    assert mode(tmp_path / "state" / "record") == mode(tmp_path / "state" / "lock") == 0o660
    assert private_umask(tmp_path) == 0o007


def test_a_folder_that_everyone_may_write_to_is_not_shared(tmp_path):
    tmp_path.chmod(0o1777)
    write_atomically(tmp_path / "state" / "record", "a name", private=True)
    write_atomically(tmp_path / "record", "a name", private=True)
    assert mode(tmp_path / "state") == 0o700 and private_umask(tmp_path) == 0o077
    assert mode(tmp_path / "record") == mode(tmp_path / "state" / "record") == 0o600


def test_what_exists_keeps_its_mode_and_what_is_replaced_does_not(tmp_path):
    log, record = tmp_path / "log", tmp_path / "record"
    for file in (log, record):
        file.touch()
        file.chmod(0o644)
    tmp_path.chmod(0o755)
    os.close(open_private(log, os.O_WRONLY))
    private_folder(tmp_path)
    write_atomically(record, "a password", private=True)
    assert (mode(log), mode(tmp_path), mode(record)) == (0o644, 0o755, 0o600)


def test_a_file_is_private_from_its_first_instant(tmp_path, monkeypatch):
    """Whoever opens it before a later chmod reads all that is ever written."""
    tmp_path.chmod(0o770)
    seen = []
    change = os.fchmod
    monkeypatch.setattr(
        os, "fchmod", lambda file, bits: (seen.append(os.fstat(file).st_mode & 0o777), change(file, bits))
    )
    os.close(open_private(tmp_path / "log", os.O_WRONLY))
    assert len(seen) == 1 and not seen[0] & 0o077


def test_what_a_tool_writes_in_a_child_is_private_too(tmp_path):
    code = "import sqlite3; sqlite3.connect('rows.db').execute('create table t (name)'); open('log', 'w')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, umask=private_umask(tmp_path), check=True)
    assert mode(tmp_path / "rows.db") == mode(tmp_path / "log") == 0o600


def test_folders_that_are_made_on_the_way_are_private_too(tmp_path):
    """With a umask of 002, `state` would look like a folder that is shared with the group."""
    tmp_path.chmod(0o755)
    write_atomically(tmp_path / "state" / "reports" / "record", "a name", private=True)
    assert mode(tmp_path / "state") == mode(tmp_path / "state" / "reports") == 0o700
    assert mode(tmp_path / "state" / "reports" / "record") == 0o600


def test_a_link_that_another_user_made_is_not_written_through(tmp_path):
    (victim := tmp_path / "victim").write_text("precious")
    (tmp_path / "lock.holder").symlink_to(victim)
    with exclusive(tmp_path / "lock", 1):
        assert victim.read_text() == "precious" and "process" in (tmp_path / "lock.holder").read_text()
