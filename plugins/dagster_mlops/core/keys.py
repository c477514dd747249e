"""Keys, passwords and tokens, by their form: files by name, and values in lines of text.

The forms are those that their makers document, and values that are assigned to names such as `password`. It is hard to
miss a key of such a form; one of another form, under a name that says nothing, is not found.
"""

import functools
import re
from fnmatch import translate
from pathlib import PurePosixPath

from dagster_mlops.core.secrets import MASK, without_secrets

MARK = b"***REMOVED***"
"""Stands in a line for a value that looks like a key."""

_NAMES = (
    *(".env", ".env.*", "*.env", ".envrc", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.ppk"),
    *("*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.asc", "*.gpg", "*.age", "*.der"),
    *(
        ".netrc",
        "_netrc",
        ".pypirc",
        ".npmrc",
        ".pgpass",
        ".my.cnf",
        ".htpasswd",
        ".git-credentials",
        ".boto",
        ".s3cfg",
    ),
    *(
        ".dockercfg",
        ".dockerconfigjson",
        ".databrickscfg",
        ".vault-token",
        "rclone.conf",
        "kubeconfig*",
        "*.kubeconfig",
    ),
    *("*.tfvars", "*.tfvars.json", "*.tfstate", "*.tfstate.*", "*credentials", "*credentials.*", "*credential.*"),
    *("*service[-_]account*.json", "*serviceaccount*.json", "client_secret*.json", "gha-creds-*.json", "token.json"),
    *("secret", "secrets", "secret.*", "secrets.*", "*[-_.]secret.*", "*[-_.]secrets.*", "password*", "passwords*"),
)
# Source is judged by its lines, unless it is named after what it holds.
_SOURCE = {
    ".py",
    ".pyi",
    ".pyx",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".cu",
    ".rs",
    ".go",
    ".java",
    ".scala",
    ".r",
    ".jl",
    ".sql",
}
_NAMES_OF_SOURCE = ("secret.*", "secrets.*", "password.*", "passwords.*")
_FOLDERS = {".aws", ".ssh", ".gnupg", ".kube", ".azure", ".gcloud", ".docker", ".oci", ".vault", ".password-store"}
_PATHS = re.compile(r".*/\.config/gcloud/|.*/\.dvc/config\.local$|.*/\.dvc/tmp/")

_PRIVATE_KEY = re.compile(
    # The last one is base64 of a file that begins so, unless it is a certificate.
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File-\d:|AGE-SECRET-KEY-1|LS0tLS1CRUdJTi(?!BDRVJU)"
)
_BEGINNINGS = (b"PRIVATE KEY", b"PuTTY-User-Key-File-", b"AGE-SECRET-KEY-1", b"LS0tLS1CRUdJTi")
# The middle of one: two lines of base64, which have capitals, unlike hashes.
_MIDDLE = re.compile(rb"(?:\n[+ -]?[ \t]*(?=[^\n]*[A-Z])[A-Za-z0-9+/]{60,76}){2}(?=\n|$)")
# Tokens in the forms that their makers document; the group is what is replaced.
_TOKENS = rb"|".join(
    (
        rb"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",  # AWS
        rb"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}",  # Google
        rb"\bgh[pousr]_\w{30,}|\bgithub_pat_\w{30,}",  # GitHub
        rb"\bgl(?:pat|dt|rt|ptt|cbt|soat)-[\w-]{20,}",  # GitLab
        rb"\bxox[abeoprs]-[\w-]{10,}|\bxapp-\d-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{20,}",  # Slack
        rb"\bsk-(?=[\w-]*\d)[\w-]{20,}|\b[rs]k_live_\w{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}",  # OpenAI; Stripe; SendGrid
        rb"\bhf_[A-Za-z0-9]{30,}|\bpypi-AgE[\w-]{30,}|\bnpm_[A-Za-z0-9]{36}|\bdapi[0-9a-f]{32}",  # Databricks the last
        rb"\bhv[sb]\.[\w-]{20,}|\bdop_v1_[0-9a-f]{40,}|\bdckr_pat_[\w-]{20,}|\bglc_[\w+/=]{30,}|\bATATT3[\w=-]{40,}",
        rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # JSON Web Tokens
        rb"(?<=AccountKey=)[\w+/=]{20,}|(?<=SharedAccessKey=)[\w+/=]{20,}|(?<=[?&]sig=)[\w%+/=-]{20,}",  # Azure
        rb"(?<=://)[^\s/:@'\"{}$<>]*:[^\s/@'\"{}$<>]{3,}(?=@)",  # user and password of an address
        rb"(?<=[Bb]earer )[\w+/=.~-]{16,}|(?<=[Bb]asic )[\w+/=]{16,}",
    )
)
_WHERE = rb"(?:[_-]?(?:\d{1,3}|prod\w*|dev\w*|test\w*|stag\w*|live|old|new|base|main|default))?"
_PASSWORD = rb"(?:passw(?:or)?d|passphrase|pwd|(?<![A-Za-z])pw|(?<![A-Za-z])pass)" + _WHERE
_SECRET = (
    rb"(?:secret|token|credentials?|api[_-]?key|account[_-]?key|access[_-]?key[_-]?id|client-key-data"
    rb"|(?:secret|access|private|auth|encryption|signing|storage|master|fernet)[_-]?key)"
) + _WHERE
# A name that ends in such a word, and a text in quotes; in a call, the name is in quotes. In notebooks, quotes are
# escaped.
_NAMED = (
    rb"(?:(?:%(word)s)\\?['\"]?\]?\s*(?:: ?[\w.\[\]|]+(?: \| [\w.\[\]]+)? ?)?(?:=>?|:)"
    rb"|\b(?:get|getenv|setenv|setdefault)\(\s*['\"]\w*(?:%(word)s)['\"]\s*,)\s*[rbfu]{0,2}"
)
_TEXT = (
    rb"(?P<quote_%(kind)s>\\?(?:\"\"\"|'''|['\"]))"
    rb"(?P<%(kind)s>(?:[^'\"\s{}\\]|\\[^'\"]){%(least)d,})(?P=quote_%(kind)s)"
)
_QUOTED = _NAMED + _TEXT
# In files of settings and in scripts, values stand without quotes.
_VALUE = rb"(?P<%(kind)s>[^\s'\"{}#,;&|()\[\]]{%(least)d,})"
_BARE = rb"^[+ -]?\s*(?:export\s+|-\s+)?[\w.-]*(?:%(word)s)\s*[:=]\s*" + _VALUE + rb"(?=\s*(?:$|#))"
_IN_COMMAND = rb"(?:^|[^\w.-])(?:[\w.-]*(?:%(word)s)=|--[\w-]*(?:%(word)s)\s+)" + _VALUE + rb"(?=[\s;&|]|$)"

# <password>…</password>, as of Maven.
_IN_XML = rb"<[\w.:-]*(?:%(word)s)>(?P<%(kind)s>[^<>{}\s]{%(least)d,})</"


_ASSIGNED = (
    (_IN_XML, _PASSWORD, b"password_in_xml", 4),
    (_IN_XML, _SECRET, b"secret_in_xml", 8),
    (_QUOTED, _PASSWORD, b"password", 4),
    (_QUOTED, _SECRET, b"secret", 8),
    (_QUOTED, rb"key", b"long_secret", 32),
)
_WITHOUT_QUOTES = (
    (_BARE, _PASSWORD, b"bare_password", 6),
    (_BARE, _SECRET, b"bare_secret", 8),
    (_IN_COMMAND, _PASSWORD, b"password_in_command", 6),
    (_IN_COMMAND, _SECRET, b"secret_in_command", 8),
)


@functools.cache  # compiled when a training has uncommitted code, not when a code location loads
def _forms(*, settings: bool) -> re.Pattern[bytes]:
    assigned = (*_ASSIGNED, *_WITHOUT_QUOTES) if settings else _ASSIGNED
    parts = [
        rb"(?i:%s)" % (form % {b"word": word, b"kind": kind, b"least": least}) for form, word, kind, least in assigned
    ]
    return re.compile(rb"|".join([rb"(?P<token>%s)" % _TOKENS, *parts]), re.MULTILINE)


_SETTINGS = {
    *(".yaml", ".yml", ".ini", ".cfg", ".conf", ".properties", ".toml", ".sh", ".bash", ".txt", ".md", ".rst", ""),
}
_KINDS = (
    *("token", "password", "secret", "long_secret", "bare_password", "bare_secret"),
    *("password_in_command", "secret_in_command", "password_in_xml", "secret_in_xml"),
)
# A line without any of these holds none of the forms: the search for them is slow.
_HINTS = (
    *(b"pass", b"pw", b"secret", b"token", b"credential", b"key", b"sig=", b"bearer", b"basic", b"akia", b"asia"),
    *(b"abia", b"acca", b"aiza", b"ya29", b"gocspx", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat"),
    *(b"glpat-", b"gldt-", b"glrt-", b"glptt-", b"glcbt-", b"glsoat-", b"glc_", b"xox", b"xapp", b"slack", b"sk-"),
    *(b"k_live", b"sg.", b"hf_", b"pypi-", b"npm_", b"dapi", b"hvs.", b"hvb.", b"dop_v1", b"dckr", b"atatt3", b"eyj"),
)
_PLACEHOLDER = re.compile(rb"\$\w+|\$\(.*\)|<.*>|\[.*\]|%\(?\w+\)?s?|\*+|\.\.\.|x+", re.IGNORECASE)
_WORDS = re.compile(rb"[A-Za-z]+(?:[._-][A-Za-z]+)*|[\d.e+-]+")


def names_key(name: str) -> bool:
    """True for the name of a file, with its folders, that is known to hold keys.

    >>> names_key("deploy/.env"), names_key(".aws/credentials"), names_key("src/train.py")
    (True, True, False)
    """
    path = PurePosixPath(name.lower())
    pattern = _named(_NAMES_OF_SOURCE if path.suffix in _SOURCE else _NAMES)
    return bool(pattern.match(path.name)) or not _FOLDERS.isdisjoint(path.parts[:-1]) or bool(_PATHS.match(f"/{path}"))


@functools.cache
def _named(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


def holds_private_key(text: bytes) -> bool:
    """True for a text with a private key in it, which is more than a line."""
    may_begin = any(beginning in text for beginning in _BEGINNINGS)
    return bool((may_begin and _PRIVATE_KEY.search(text)) or _MIDDLE.search(text))


def without_keys(text: bytes, name: str) -> bytes:
    """The text of a file with a mark in place of each value that looks like a key; the same object if none does.

    So are the values of credentials that this process has used.

    >>> without_keys(b'token = "ghp_0123456789abcdefghijABCDEFGHIJ012345"', "a.py")
    b'token = "***REMOVED***"'
    """
    pattern = _forms(settings=PurePosixPath(name).suffix.lower() in _SETTINGS)
    lowered = text.lower()
    hints = [hint for hint in _HINTS if hint in lowered]
    hints += [b"@"] if b"@" in text and b"://" in text else []
    lines = text.split(b"\n") if hints else [text]
    for number, line in enumerate(lowered.split(b"\n") if hints else ()):
        for hint in hints:
            if hint in line:
                lines[number] = pattern.sub(_marked, lines[number])
                break
    clean = _without_used(b"\n".join(lines))
    return text if clean == text else clean


def _without_used(text: bytes) -> bytes:
    """The text without the credentials that this process has used, each replaced by the mark of this module."""
    decoded = text.decode(errors="surrogateescape")
    if without_secrets(decoded) == decoded:
        return text
    clean = [
        masked.replace(MASK, MARK.decode()) if (masked := without_secrets(line)) != line else line
        for line in decoded.split("\n")
    ]
    return "\n".join(clean).encode(errors="surrogateescape")


def _marked(match: re.Match[bytes]) -> bytes:
    values = match.groupdict()
    kind = next(kind for kind in _KINDS if values.get(kind))
    # A password may be a word; another secret is hardly one.
    if kind != "token" and (_PLACEHOLDER.fullmatch(values[kind]) or values[kind] == MARK):
        return match[0]
    if "secret" in kind and _WORDS.fullmatch(values[kind]):
        return match[0]
    start, end = (place - match.start() for place in match.span(kind))
    return match[0][:start] + MARK + match[0][end:]
