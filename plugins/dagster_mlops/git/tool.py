"""Git commits, the last link of the chain: is one still in its repository, and what was it?"""

import os
import re
import subprocess
from pathlib import Path

from dagster_mlops.provenance import Accessible, Answer, Commit, Deleted, Faulty, Inaccessible, Ref

_TIMEOUT = 5.0
_FORMAT = "--format=%H%x00%aI%x00%an%x00%s"


class GitTool:
    """Answers whether a commit is still in its repository, and what it was.

    >>> GitTool().resolve(Ref("git", "commit", "1f0c2ab", at="/no/such/folder")).bucket
    'inaccessible'
    """

    def resolve(self, ref: Ref) -> Answer:
        if not re.fullmatch(r"[0-9a-f]{7,64}", ref.id):
            return Faulty(f"{ref.id!r} is no commit hash.")
        if not ref.at or not Path(ref.at).is_dir():
            return Inaccessible(f"the folder of the git repository is not there: {ref.at or 'not recorded'}.")
        try:
            inside = _git(ref.at, "rev-parse", "--is-shallow-repository")
            if inside.returncode:
                return Inaccessible(f"git cannot read {ref.at}: {inside.stderr.strip()}")
            shown = _git(ref.at, "show", "--no-patch", "--no-show-signature", _FORMAT, f"{ref.id}^{{commit}}")
        except subprocess.TimeoutExpired:
            return Inaccessible(f"git did not answer within {_TIMEOUT:.0f} s in {ref.at}.")
        except OSError as error:
            return Inaccessible(f"git could not be started: {error}.")
        if shown.returncode == 0:
            sha, authored, author, subject = shown.stdout.rstrip("\n").split("\0")
            return Accessible(Commit(sha=sha, repo=ref.at, authored=authored, author=author, subject=subject))
        if inside.stdout.strip() == "true":
            return Inaccessible(f"{ref.at} is a shallow clone without this commit. Run: git fetch --unshallow")
        return Deleted(f"commit {ref.id[:12]} is not in {ref.at} (rewritten, or never pushed from where it was made).")


def _git(repo: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Variables that a git hook sets would point git at another repository, and a partial clone would go to the network.
    clean = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    environment = {**clean, "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    return subprocess.run(
        ["git", "-C", repo, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
