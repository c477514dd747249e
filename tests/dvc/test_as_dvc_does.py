"""The cases of DVC's own suite for `dvc repro`: one repository twice, its stages as assets here, by DVC there.

After each step both have executed the same stages, and have the same files, pointers, locks and objects in the cache.
The cases are in ``repro_cases.yaml``, written anew after https://github.com/iterative/dvc/tree/main/tests/func/repro.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import reproduce

from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, objects_in

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

CASES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("repro_cases.yaml").read_text())
QUICK = ("a command that fails, and works then",)
CHAIN = {
    "code.sh": "head -n 1\n",
    "raw.txt": "1\n2\n",
    "params.yaml": "p: {x: 1, y: 1}\n",
    "dvc.yaml": """
        stages:
          first: {cmd: LOG first && sh code.sh < raw.txt > a.txt, deps: [code.sh, raw.txt], outs: [a.txt]}
          second:
            cmd: LOG second && cat a.txt > b.txt && echo ${p.x} >> b.txt
            deps: [a.txt]
            params: [p.x]
            outs: [b.txt]
          third: {cmd: LOG third && cat b.txt > c.txt, deps: [b.txt], outs: [c.txt]}
    """,
}
TRACKED = {"raw.txt", "folder"}


def _apply(project: DvcProject, step: dict[str, Any]) -> None:
    for name, content in step.items():
        file = project.folder / name
        if isinstance(content, dict) and "replace" in content:
            old, new = content["replace"]
            assert _logging(old) in file.read_text()
            content = file.read_text().replace(_logging(old), new)
        if isinstance(content, str):
            project.write({name: _logging(content)})
        elif content and "mode" in content:
            file.chmod(content["mode"])
        else:
            file.unlink(missing_ok=bool(content))
            if content:
                file.symlink_to(content["link"])


def _logging(text: str) -> str:
    return re.sub(r"LOG ((?:\$\{[^}]*\}|[^\s,\]}])+)", r"echo \1 >> $RUNS", text)


def _by_dvc(project: DvcProject) -> bool:
    here = Path.cwd()
    os.chdir(project.folder)
    try:
        with Repo() as repo:
            reproduce(repo, all_pipelines=True)
        return True
    except DvcException:
        return False
    finally:
        os.chdir(here)


def _by_assets(project: DvcProject) -> bool:
    return project.run(raise_on_error=False, commit=False).success


def _state(project: DvcProject) -> dict[str, Any]:
    names = project.git("-c", "core.quotePath=false", "ls-files", "--cached", "--others").splitlines()
    files = {name: project.folder / name for name in names if not name.startswith(".dvc/")}
    facts: dict[str, Any] = {name: file.read_bytes() for name, file in files.items() if file.is_file()}
    facts |= {name: project.yaml(name) for name in facts if name.endswith((".dvc", "dvc.lock"))}
    # Independent stages may run in another order.
    facts |= {name: set(facts[name].splitlines()) for name in facts if name.endswith(".gitignore")}
    facts |= {f"mode of {name}": file.stat().st_mode for name, file in files.items() if file.is_file()}
    return {**facts, "objects": objects_in(project.folder / ".dvc/cache/files")}


@pytest.mark.parametrize("case", [pytest.param(n, marks=() if n in QUICK else pytest.mark.thorough) for n in CASES])
def test_the_assets_of_stages_do_what_dvc_repro_does(case, tmp_path, monkeypatch):
    ours = DvcProject.new(tmp_path / "ours", {"readme": ""})
    _apply(ours, CASES[case].get("files", CHAIN))
    if tracked := [name for name in TRACKED if (ours.folder / name).exists()]:
        ours.dvc("add", "-q", *tracked)
    ours.commit()
    theirs = ours.copy(tmp_path / "theirs")
    for number, step in enumerate([{}, *CASES[case]["steps"]]):
        results = {}
        for project, act in ((ours, _by_assets), (theirs, _by_dvc)):
            _apply(project, step)
            runs = tmp_path / f"runs-{project.folder.name}-{number}"
            runs.touch()
            monkeypatch.setenv("RUNS", str(runs))
            results[project] = (act(project), sorted(runs.read_text().split()), _state(project))
        (*result, state), (*expected_result, expected) = results.values()
        differing = [name for name in {*state, *expected} if state.get(name) != expected.get(name)]
        assert (result, differing) == (expected_result, []), f"step {number}"
