"""The check of known vulnerabilities says what a reader of OSV's database would say."""

import io
import json
import re
import zipfile

import pytest

from tests.advisories import ROOT, findings, from_export, from_service, pins, report

LOCK = """bentoml==1.4.39 \\
    --hash=sha256:00
diskcache==5.6.3 ; sys_platform != 'win32'
    # via dvc
zope-interface==8.0
"""


def advisory(name: str, package: str, *events: dict[str, str], **fields: object) -> dict:
    affected = {"package": {"ecosystem": "PyPI", "name": package}}
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}, {"type": "GIT", "events": [{"fixed": "abc"}]}]
    return {"id": name, "summary": f"of {package}", **fields, "affected": [{**affected, "ranges": ranges}]}


DATABASE = [
    advisory("GHSA-1", "BentoML", {"introduced": "0"}, {"fixed": "1.4.40"}, aliases=["CVE-2026-1"]),
    advisory("PYSEC-1", "bentoml", {"introduced": "0"}, {"fixed": "1.4.40"}, aliases=["CVE-2026-1", "GHSA-1"]),
    advisory("GHSA-2", "bentoml", {"introduced": "1.4.40"}),
    advisory("GHSA-3", "bentoml", {"introduced": "0"}, {"last_affected": "1.4.38"}),
    advisory("GHSA-4", "diskcache", {"introduced": "0"}, aliases=["CVE-2025-69872"]),
    advisory("GHSA-5", "zope.interface", {"introduced": "7"}, {"fixed": "7.5"}, {"introduced": "7.9"}),
    advisory("GHSA-6", "bentoml", {"introduced": "0"}, withdrawn="2026-01-01"),
    advisory("GHSA-7", "requests", {"introduced": "0"}),
]


def test_advisories_of_the_locked_versions_are_found_once_with_the_version_that_fixes_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as export:
        for entry in DATABASE:
            export.writestr(f"{entry['id']}.json", json.dumps(entry))
    packages = pins(LOCK)
    assert packages == [("bentoml", "1.4.39"), ("diskcache", "5.6.3"), ("zope-interface", "8.0")]
    found = findings(from_export(tmp_path / "all.zip", packages), packages)
    assert {name: fix for name, (_, fix) in found.items()} == {
        "CVE-2026-1 bentoml": "1.4.40", "CVE-2025-69872 diskcache": "", "GHSA-5 zope-interface": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accepted", "fix", "bad"),
    [
        ({"CVE-2025-69872": "private"}, "", 0),
        ({}, "", 1),
        ({"CVE-2025-69872": "private"}, "5.7", 1),
        ({"CVE-2025-69872": "private", "CVE-2020-1": "gone"}, "", 1),
    ],
)
def test_a_finding_is_answered_for_until_there_is_a_fix(accepted, fix, bad):
    lines, count = report({"CVE-2025-69872 diskcache": ("a pickle", fix)}, accepted)
    assert count == bad and len([line for line in lines if line.startswith("!")]) == bad


def test_all_packages_of_the_lock_file_are_asked_for():
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pins(lock)) == len(re.findall("^[^ #].*==", lock, re.MULTILINE)) > 200


def test_no_form_of_a_pin_or_of_an_advisory_hides_a_finding():
    assert pins("uvicorn[standard]==0.30 \\\ntorch==2.4.0+cu121\n") == [("uvicorn", "0.30"), ("torch", "2.4.0")]
    package = {"ecosystem": "PyPI", "name": "bentoml"}
    both = advisory("GHSA-8", "bentoml", {"introduced": "0"})
    both["affected"] += advisory("", "diskcache", {"introduced": "0"})["affected"]
    found = findings(
        [
            both,
            advisory("GHSA-9", "bentoml", {"introduced": "0"}, {"fixed": "no version"}),
            {"id": "GHSA-10", "affected": [{"package": package, "versions": ["1.4.39.0"]}]},
        ],
        pins(LOCK),
    )
    assert sorted(found) == ["GHSA-10 bentoml", "GHSA-8 bentoml", "GHSA-8 diskcache", "GHSA-9 bentoml"]


def test_all_pages_of_the_services_answer_are_read(monkeypatch):
    asked = []

    def answer(request, timeout):
        if isinstance(request, str):
            return io.StringIO(json.dumps({"id": request.rpartition("/")[2]}))
        [query] = json.loads(request.data)["queries"]
        asked.append(query.get("page_token"))
        page = {"vulns": [{"id": "GHSA-2"}]} if query.get("page_token") else {"next_page_token": "p"}
        return io.StringIO(json.dumps({"results": [page]}))

    monkeypatch.setattr("urllib.request.urlopen", answer)
    assert [entry["id"] for entry in from_service([("bentoml", "1.4.39")])] == ["GHSA-2"] and asked == [None, "p"]
