"""Keys, passwords and tokens in files: files by name, and values by the table of forms that masks of text use, too.

It is hard to miss a key of such a form; one of another form, under a name that says nothing, is not found. In code, an
expression such as `token = read()` stands where in text the value stands, so a use for files asks more of a value.
"""

import functools
import re
from collections.abc import Iterator
from fnmatch import translate
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath

from dagster_mlops.core.credential_spans import Span, fixpoint, is_password, is_word, spans
from dagster_mlops.core.secrets import MASK, without_secrets

MARK = b"***REMOVED***"
"""Stands in a line for a value that looks like a key."""

_NAMES = """
    .env .env.* *.env .envrc env.prod* env.dev* env.stag* env.test* env.live* env.local* env.secret*
    id_rsa* id_dsa* id_ecdsa* id_ed25519* *.pem *.key *.ppk *.p12 *.pfx *.jks *.keystore *.kdbx *.asc *.gpg *.age *.der
    .netrc _netrc .pypirc .npmrc .pgpass .my.cnf .htpasswd .git-credentials .boto .s3cfg .dockercfg .dockerconfigjson
    .databrickscfg .vault-token rclone.conf kubeconfig* *.kubeconfig *.tfvars *.tfvars.json *.tfstate *.tfstate.*
    *credentials *credentials.* *credential.* *service[-_]account*.json *serviceaccount*.json client_secret*.json
    gha-creds-*.json *firebase-adminsdk*.json auth.json token.json key.json *[-_.]key.json vault.y*ml vault.json
    secret secrets secret.* secrets.* *[-_.]secret.* *[-_.]secrets.* password* passwords*
"""
# Source is judged by its lines, unless it is named after what it holds.
_SOURCE = ".py .pyi .pyx .c .h .cc .cpp .cu .rs .go .java .scala .r .jl .sql"
_NAMES_OF_SOURCE = "secret.* secrets.* password.* passwords.*"
_FOLDERS = ".aws .ssh .gnupg .kube .azure .gcloud .docker .oci .vault .password-store"
_PATHS = re.compile(r".*/\.config/gcloud/|.*/\.dvc/config\.local$|.*/\.dvc/tmp/")

_PRIVATE_KEY = re.compile(
    # The last one is base64 of a file that begins so, unless it is a certificate.
    rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|PuTTY-User-Key-File-\d:|AGE-SECRET-KEY-1|LS0tLS1CRUdJTi(?!BDRVJU)"
)
# The middle of one: two lines of base64, which have capitals, unlike hashes.
_MIDDLE = re.compile(rb"(?:\n[+ -]?[ \t]{0,40}(?=[^\n]{0,75}[A-Z])[A-Za-z0-9+/]{60,76}){2}(?=\n|$)")

_SETTINGS = ".yaml .yml .ini .cfg .conf .properties .toml .sh .bash .txt .md .rst"
"""Files in which values stand without quotes."""
_PLACEHOLDER = re.compile(
    r"\$\w+|\$\(.*\)|<.*>|\[.*\]|%\(?\w+\)?s?|\*+|\.\.\.|x+|:\w+|pass(?:word)?|pwd", re.IGNORECASE
)
_TEMPLATE = re.compile(r"[\s{}]")  # in a value in quotes: text, or a template
_EXPRESSION = re.compile(r"[\s{}'\"#,;&|()\[\]]")  # in another one
_END = {  # after a value without quotes: in settings, there below "name: ", and within a text in quotes
    "anywhere": re.compile(r"[\s;&|\"'#]|%3B|%26|,[\w.\-]{1,40}=|$"),
    "line": re.compile(r"[ \t]*(?:$|[#,}\]])", re.MULTILINE),
    "text": re.compile(r"[\"'&]|[; ][ ]?[\w.\-]{1,40}="),
}


def names_key(name: str) -> bool:
    """True for the name of a file, with its folders, that is known to hold keys.

    >>> names_key("deploy/.env"), names_key(".aws/credentials"), names_key("src/train.py")
    (True, True, False)
    """
    path = PurePosixPath(name.lower())
    names = _NAMES_OF_SOURCE if path.suffix in _SOURCE.split() else _NAMES
    pattern = _regex("|".join(map(translate, names.split())))
    is_below = not set(path.parts[:-1]).isdisjoint(_FOLDERS.split())
    return bool(pattern.match(path.name)) or is_below or bool(_PATHS.match(f"/{path}"))


_regex = functools.cache(re.compile)


def holds_private_key(text: bytes) -> bool:
    """True for a text with a private key in it, which is more than a line."""
    return bool(_PRIVATE_KEY.search(text) or _MIDDLE.search(text))


def without_keys(text: bytes, name: str, *, diff: bool = False) -> bytes:
    """The text of a file with a mark in place of each value that looks like a key; the same object if none does.

    So are the values of credentials that this process has used. A mark covers no end of a line, so a `diff` of one file
    stays one.

    >>> without_keys(b'token = "ghp_0123456789abcdefghijABCDEFGHIJ012345"', "a.py")
    b'token = "***REMOVED***"'
    """
    before = text.decode(errors="surrogateescape")
    is_settings = PurePosixPath(name).suffix.lower() in ("", *_SETTINGS.split())
    after = fixpoint(lambda content: _marked(content, is_settings, diff), before)
    return text if after == before else after.encode(errors="surrogateescape")


def _marked(text: str, is_settings: bool, diff: bool) -> str:
    lines = text.split("\n")
    for numbers, skipped in _sides(lines, diff):
        places = _places([lines[number][skipped:] for number in numbers], is_settings)
        for number, keys in groupby(places, key=itemgetter(0)):
            line, parts, end = lines[numbers[number]], [], 0
            for _, start, stop in keys:
                parts += [line[end : start + skipped], MARK.decode()]
                end = stop + skipped
            lines[numbers[number]] = "".join([*parts, line[end:]])
    clean = "\n".join(lines)
    if without_secrets(clean) != clean:
        used = [(line, without_secrets(line)) for line in lines]
        clean = "\n".join(line if line == rest else rest.replace(MASK, MARK.decode()) for line, rest in used)
    return clean


def _sides(lines: list[str], diff: bool) -> Iterator[tuple[list[int], int]]:
    """Numbers of the lines of a file, and the width of what a diff puts before each; of a diff, of both its sides."""
    if not diff:
        yield [*range(len(lines))], 0
        return
    first = next((number for number, line in enumerate(lines) if line.startswith("@@")), 0)
    for sign in "+-":
        if numbers := [n for n in range(first, len(lines)) if lines[n][:1] in (sign, " ", "@")]:
            yield numbers, 1


def _places(lines: list[str], is_settings: bool) -> list[tuple[int, int, int]]:
    """Number of the line, start and end of each key; they are in order, and none overlaps."""
    text = "\n".join(lines)
    places: list[tuple[int, int, int]] = []
    number, line_start, end = 0, 0, -1
    for span in spans(text):
        if span.start < end or not _is_key(text, span, is_settings):
            continue
        end = span.stop
        for part in re.finditer(r"[^\n]+", text[span.start : end]):
            start = span.start + part.start()
            while start > line_start + len(lines[number]):
                line_start += len(lines[number]) + 1
                number += 1
            places.append((number, start - line_start, start - line_start + len(part[0])))
    return places


def _is_key(text: str, span: Span, is_settings: bool) -> bool:
    """True if a credential of a text is one in a file, too: code has expressions and templates in such places."""
    value = span.secret
    if span.by == "equal" or _PLACEHOLDER.fullmatch(value) or MARK.decode() in text[span.start : span.stop]:
        return False
    if span.by == "prefix":
        return True
    if (_TEMPLATE if span.quoted else _EXPRESSION).search(value) or is_word(span.name, value):
        return False
    least = 8 if not is_password(span.name) else 4 if span.quoted else 6
    return len(value) >= least and (span.quoted or _may_be_bare(text, span, is_settings))


def _may_be_bare(text: str, span: Span, is_settings: bool) -> bool:
    """True if a value without quotes is a text here, not an expression: in settings, and in a text in quotes."""
    is_tight = text[span.start - 1] == "=" or text.endswith("%3D", 0, span.start) or span.name.startswith("--")
    if is_tight and _END["text"].match(text, span.stop):
        return True
    return is_settings and bool(_END["anywhere" if is_tight else "line"].match(text, span.stop))
