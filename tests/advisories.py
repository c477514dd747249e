"""Known vulnerabilities of the locked packages, by the OSV database; run as ``make advisories``.

Asks api.osv.dev, or reads a copy of its export for PyPI (``--database all.zip``) where there is no network. Advisories
that are answered for in pyproject.toml (``tool.advisories``) are listed with their reason: those without a fix, until
there is one.
"""

import argparse
import json
import re
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[1]
_FIRST = Version("0.dev0")
_SERVICE = "https://api.osv.dev/v1"
_PIN = re.compile(r"^([A-Za-z0-9][\w.\-]*)(?:\[[^\]]*\])?[ ]*==[ ]*([^\s;\\+]+)", re.MULTILINE)


def pins(lock: str) -> list[tuple[str, str]]:
    """Packages and versions of a lock file; a package may have several, for different versions of Python."""
    return [(canonicalize_name(name), version) for name, version in _PIN.findall(lock)]


def from_export(file: Path, packages: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The advisories in OSV's export that name one of these packages."""
    ours = {name for name, _ in packages}
    with zipfile.ZipFile(file) as export:
        for name in export.namelist():
            advisory = json.loads(export.read(name))
            if any(canonicalize_name(a["package"]["name"]) in ours for a in _of_python(advisory)):
                yield advisory


def from_service(packages: Sequence[tuple[str, str]], service: str = _SERVICE) -> Iterator[dict[str, Any]]:
    """The same by two kinds of requests: one for all packages, and one for each advisory.

    Raises:
        OSError: the service cannot be reached.
    """
    queries = [{"package": {"name": n, "ecosystem": "PyPI"}, "version": v} for n, v in packages]
    ids: set[str] = set()
    while queries:  # an answer may come in pages
        request = urllib.request.Request(f"{service}/querybatch", json.dumps({"queries": queries}).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            results = json.load(answer)["results"]
        ids |= {found["id"] for result in results for found in result.get("vulns", [])}
        pages = [result.get("next_page_token") for result in results]
        queries = [{**query, "page_token": page} for query, page in zip(queries, pages, strict=True) if page]
    for name in sorted(ids):
        with urllib.request.urlopen(f"{service}/vulns/{name}", timeout=60) as answer:
            yield json.load(answer)


def findings(
    advisories: Iterable[Mapping[str, Any]], packages: Sequence[tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """By the advisory's id and package: its summary, and the version that fixes it, if there is one.

    An advisory that another one repeats (its alias) is reported once.
    """
    found: dict[str, tuple[str, str]] = {}
    seen: set[tuple[str, str]] = set()
    for advisory in sorted(advisories, key=lambda entry: entry["id"]):
        names = {advisory["id"], *advisory.get("aliases", [])}
        for affected in _of_python(advisory):
            name = canonicalize_name(affected["package"]["name"])
            versions = [version for package, version in packages if package == name and _is_affected(version, affected)]
            repeated = {(name, one) for one in names}
            if versions and not advisory.get("withdrawn") and not repeated & seen:
                seen |= repeated
                cve = next((alias for alias in sorted(names) if alias.startswith("CVE")), advisory["id"])
                found[f"{cve} {name}"] = (advisory.get("summary", ""), _fix(versions[0], affected))
    return found


def report(found: Mapping[str, tuple[str, str]], accepted: Mapping[str, str]) -> tuple[list[str], int]:
    """The lines to print, and how many findings are not answered for: unknown ones, and those that have a fix now."""
    lines, bad = [], 0
    for name, (summary, fix) in sorted(found.items()):
        reason = accepted.get(name.split()[0])
        bad += (is_bad := reason is None or bool(fix))
        state = f"fixed in {fix}" if fix else f"accepted: {reason}" if reason else "no fix yet, and no answer"
        lines.append(f"{'!' if is_bad else ' '} {name}: {summary or 'no summary'} ({state})")
    lines += [f"! {name}: answered for, but not found. Remove it." for name in _stale(found, accepted)]
    return lines, bad + len(_stale(found, accepted))


def _stale(found: Mapping[str, Any], accepted: Mapping[str, str]) -> list[str]:
    return sorted(accepted.keys() - {name.split()[0] for name in found})


def _of_python(advisory: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [a for a in advisory.get("affected", []) if a.get("package", {}).get("ecosystem") == "PyPI"]


def _is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    ours = Version(version)
    if any(text == version or _order(text) == ours for text in affected.get("versions", [])):
        return True
    for span in _spans(affected):
        inside = False
        # OSV: events in the order of versions, each of which begins or ends a span.
        for event in sorted(span, key=lambda event: _order(next(iter(event.values()))) or _FIRST):
            [(kind, value)] = event.items()
            place = _order(value)
            if kind == "introduced" and ours >= (place or _FIRST):
                inside = True
            # An end that cannot be read ends nothing.
            elif place and ((kind == "fixed" and ours >= place) or (kind == "last_affected" and ours > place)):
                inside = False
        if inside:
            return True
    return False


def _fix(version: str, affected: Mapping[str, Any]) -> str:
    fixes = [event["fixed"] for span in _spans(affected) for event in span if "fixed" in event]
    later = [(place, fix) for fix in fixes if (place := _order(fix)) and place > Version(version)]
    return min(later, default=(_FIRST, ""))[1]


def _spans(affected: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    return [span["events"] for span in affected.get("ranges", []) if span.get("type") == "ECOSYSTEM"]


def _order(version: str) -> Version | None:
    try:
        return Version(version)
    except InvalidVersion:
        return None


def main() -> int:
    """Print the findings; 1 when one is not answered for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, help="OSV's export for PyPI, all.zip, instead of its service")
    parser.add_argument("--required", action="store_true", help="fail where the service cannot be reached")
    options = parser.parse_args()
    packages = pins((ROOT / "requirements.lock").read_text())
    accepted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["advisories"]
    try:
        advisories = list(from_export(options.database, packages) if options.database else from_service(packages))
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        print(f"Advisories were NOT checked: {error}. Without a network, give a copy: --database all.zip.")
        return int(options.required)
    lines, bad = report(findings(advisories, packages), accepted)
    print("\n".join([*lines, f"{len(packages)} packages, {bad} findings to act on."]))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
