"""Forms in which text has credentials: values of names, URLs, headers, private keys, tokens with a prefix."""

import functools
import re
from collections import deque
from collections.abc import Iterator

Span = tuple[int, int, str]
"""Start and end of a part of a text that is masked, and the credential in it: a URL's part begins with the user."""

# Tokens of language models and of paging are not credentials, nor are the keys of tables.
_SECRET = (
    r"(?<![a-z])pass|(?<![a-z])_auth|(?:passw(?:or)?ds?|passwort|passphrase|passcode|pwd|bindpw|(?<![a-z])pw|secrets?|credentials?"
    r"|(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!mask_)(?<!page)(?<!page_)(?<!next)(?<!next_)token"
    r"|(?:api|access|account|private|secret|shared|subscription|encryption|signing|auth|storage|master|fernet)[._-]?keys?"
    r")(?:[_-]?(?:\d{1,3}|prod|production|dev|test|staging|live|old|new|main|default|primary|secondary))?"
    r"|account\.key\.[\w.]{1,99}"
)
_NAME = rf"(?i)[\w.\- ]*(?:{_SECRET})"
_HARMLESS = (
    r"(?i)(?:none|null|true|false|yes|no|any|optional|str(?:ing)?|text|varchar|bytes|u?int(?:8|16|32|64)?|integer|long"
    r"|float(?:16|32|64)?|double|bool(?:ean)?|object|category|date|timestamp|)"
)
_VARIABLE = r"(?:env:[A-Z]\w*|\$[A-Z][A-Z0-9_]*|\$\{\w+\})\W{0,3}$"  # the name of an environment variable

# A run of word characters is read from its start only, and what a value covers is not read again: the time is linear in
# the length of the text. Everything else that repeats has a bound.
_BLOCK = r":[ \t]{1,3}[|>][+\-]?\n[ \t]{1,40}"  # of YAML
_TYPED = r":[ \t]?(?:str|bytes|SecretStr|Optional\[str\]|str \| None)[ \t]?="  # in Python
# The value of a name that is a value itself: {"name": "password", "value": …}, ("password", …), ["--password", …]
_NEXT = (
    r"(?:\\{0,9}[\"']?,\s{0,60}|\\{0,9}[\"']?\s{1,60})\\{0,9}[\"']?value\\{0,9}[\"']?[ \t]{0,3}[:=][ \t]{0,3}"
    r"|[\"'],[ \t]{0,3}(?=[\"'])"
)
_XML = r"</(?:name|key)>\s{0,60}<value>|>"
_PAIR = (
    rf"(?i)(?<![\w.\-])[\w.\-]*?(?:(?P<secret>{_SECRET})|(?P<header>authorization|cookie)|(?P<query>signature|sig|key))"
    rf"(?![\w.\-])(?P<by>{_BLOCK}|\\{{0,9}}[\"']?\]?[ \t]{{0,40}}(?:={{1,2}}>?|:=|{_TYPED}|:|%(?:25)?3D)[ \t]{{0,40}}"
    rf"|{_NEXT}|{_XML}|[ \t]{{1,3}})"
)
_PARTS_OF_NAMES = ("pass", "pw", "secret", "credential", "token", "auth", "cookie", "sig", "key")
_QUOTED = r"(?i)(?:[brf]{1,2}|\w{1,30}\()?(?:(\"\"\"|'''|[\"'])((?:(?!\1)[^\\\n]|\\.|\1\1)*)|\\+[\"']([^\"'\\\n]*))"
# Commas, semicolons and quotes may be part of a password, unless what follows begins something else.
_UNQUOTED = (
    r"(?i)(?:[^\s&;,\"'%]|&(?!(?:amp;)?[\w.\-]{1,40}=|\s|$)"
    r"|[;,](?!\s|$|[\w.\- \"']{1,40}[=:])|[\"'](?![\s,;&)}\]:>.\\]|$)|%(?!3B|26))+"
)
_BRACES = r"\{[^{}\n]{1,200}\}"  # of ODBC
_LIST = r"\[[^\[\]\n]{1,500}\]"
_PROSE = r"[a-z]+(?=[ \t]+[A-Za-z])"  # password: check it
_LINE = {"": r"[^\n]+", "'": r"(?:[^'\\\n]|\\.)+", '"': r"(?:[^\"\\\n]|\\.)+"}  # by the quote around it
_ELEMENT = r"[^<\n]{1,500}(?=</)"

_URL = r":\\?/\\?/([^\s\"]*)"
_HOST = (  # of those that no password looks like
    r"(?i)(?:localhost|[\w\-]{1,63}:\d{2,5}|\[[\w:.]{2,40}\]|(?:[\w\-]{1,63}\.){1,8}[a-z]{2,20}|(?:\d{1,3}\.){3}\d{1,3})"
    r"(?::\d{1,5})?(?=[/?#,;]|$)"
)
_PORT = r"\d{2,5}$"

_FORMS = [  # a text that has one of the words, and the form
    (("%3A", "%3a"), r"(?i)(?<=%3A%2F%2F)((?:[^%\s&]|%(?!40|2F|3A))*%3A(?:[^%\s&]|%(?!40|2F))*)(?=%40)"),
    (
        ("earer ", "EARER ", "asic ", "ASIC "),
        r"(?<!\w)(?:[Bb]earer|BEARER|[Bb]asic|BASIC) {1,9}(?=[a-z]{0,99}[^a-z\s])([\w.~+/\-]{6,}=*)",
    ),
    (("login",), r"\blogin\s{1,9}\S{1,200}\s{1,9}password\s{1,9}(\S+)"),
    (("dentified", "DENTIFIED"), r"(?i)\bidentified by ['\"]?([^\s'\"]+)"),
    (("mysql", "mariadb"), r"\b(?:mysql|mariadb)\w{0,9}[^\n]{0,200}?\s-p(\S+)"),
    (("@tcp(", "@unix("), r"(?<![\w.\-])[\w.\-]{1,64}:([^\s@]{1,200})(?=@(?:tcp|unix)\()"),
    ((" -u", "--user"), r"(?<!\S)(?:-u|--user)[ =]{0,3}['\"]?[^\s:'\"]{1,200}:([^\s'\"]+)"),
    (("oracle:", "sqlplus"), r"\b(?:oracle:(?:thin|oci):|sqlplus )[^\s/@]{1,200}/([^\s@]+)(?=@)"),
    (("sshpass",), r"\bsshpass\s{1,9}-p\s{0,9}['\"]?([^\s'\"]+)"),
    (("'-u'", '"-u"'), r"[\"']-u[\"'],[ ]?[\"'][^\"':\n]{1,200}:([^\"'\n]+)"),
    (
        ("auth", "Auth"),
        r"(?i)auth\w{0,20}[ \t]{0,3}=?[ \t]{0,3}\([ \t]{0,3}[\"'][^\"'\n]{0,200}[\"'],[ \t]{0,3}[\"']([^\"'\n]+)",
    ),
    (("PRIVATE KEY",), r"(?s)-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]{1,60}-----|\Z)"),
    (("hooks.slack",), r"(?<=hooks\.slack\.com/services/)[\w/]+"),
    (("eyJ",), r"(?<![\w\-])eyJ[\w\-]{8,}\.[\w\-]{8,}(?:\.[\w\-]*)?"),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_"), r"(?<!\w)(?:gh[pousr]|github_pat|hf)_\w{20,}"),
    (("glpat-", "xox", "sk-"), r"(?<![\w\-])(?:glpat|xox[abprs]|sk)-[\w\-]{16,}"),
    (("AIza",), r"(?<![\w\-])AIza[\w\-]{30,}"),
]


_regex = functools.cache(re.compile)  # each when it is first used: compiling all would double the time of the import


def is_secret(name: str, value: str) -> bool:
    """True if a value of this name is a credential.

    >>> is_secret("db_password", "x"), is_secret("password", "env:NAME"), is_secret("pad_token", "[PAD]")
    (True, False, False)
    """
    may_be = any(part in name.lower() for part in _PARTS_OF_NAMES)
    return may_be and _regex(_NAME).fullmatch(name) is not None and not _harmless(name, value)


def spans(text: str) -> list[Span]:
    """The credentials of a text, in order; some may overlap."""
    credentials: list[Span] = []
    if "@" in text and ("://" in text or ":\\/\\/" in text):
        credentials += _of_urls(text)
    if "=" in text or ":" in text or " " in text or "%3" in text or "%253" in text or ">" in text or "," in text:
        lower = text.lower()
        if any(word in lower for word in _PARTS_OF_NAMES):
            credentials += _of_pairs(text, list(credentials))
    for words, form in _FORMS:
        for word in words:
            if word in text:
                for match in _regex(form).finditer(text):
                    group = match.lastindex or 0
                    credentials.append((*match.span(group), match[group]))
                break
    return sorted(credentials)


def _of_pairs(text: str, urls: list[Span]) -> Iterator[Span]:
    end, later_urls = 0, deque(urls)
    for match in _regex(_PAIR).finditer(text):
        start, by = match.start(), match["by"]
        while later_urls and later_urls[0][1] <= start:
            later_urls.popleft()
        if start < end or (later_urls and later_urls[0][0] <= start):
            continue
        name, before = text[start : match.start("by")], text[start - 1 : start]
        in_query = before in ("?", "&", "#")
        if match["query"] and not (by == "=" and (in_query or before == ";" or name.lower() == "sig")):
            continue
        is_scheme = by.startswith(":") and text.startswith("//", match.end())
        if is_scheme or (before == "/" and by == "="):  # or a folder of a partition, such as token=a/part.parquet
            continue
        if by == ">" and before != "<":
            continue
        by_place = by[:1] in "\"'" and by.rstrip(" \t").endswith(",")
        if by_place and not (name.startswith("--") or text[max(0, start - 2) : start - 1] == "("):
            continue
        value = _regex(_QUOTED).match(text, match.end())
        if by.strip(" \t") == "" and not (name.startswith("--") or (value and name.lower() == "password")):
            continue
        group = (2 if value[1] else 3) if value else 0
        if not value:
            line = _LINE[before if before in ("'", '"') else ""] if match["header"] else _UNQUOTED
            in_xml = by.endswith(">") and not by.startswith("=")
            forms = (_ELEMENT,) if in_xml else (*((_BRACES,) if by.startswith("=") else ()), _LIST, line)
            value = next(filter(None, (_regex(form).match(text, match.end()) for form in forms)), None)
            if value is None or (":" in by and not match["header"] and _regex(_PROSE).match(text, match.end())):
                continue
        first, last = value.span(group)
        if in_query and not group and (fragment := text.find("#", first, last)) >= 0:
            last = fragment
        if first < last and not _harmless(name, text[first:last]):
            end = last
            yield first, last, text[first:last].rpartition(" ")[2] if match["header"] else text[first:last]


def _harmless(name: str, value: str) -> bool:
    if _regex(_VARIABLE).match(value) or _regex(_HARMLESS).fullmatch(value.strip(" )]}.,;:|")):
        return True
    if name.lower() == "pass":  # a count of tests
        return value.isdigit() and len(value) < 6
    return value.startswith(("/", "./", "~/")) and name.lower().rstrip("s").endswith("credential")


def _of_urls(text: str) -> Iterator[Span]:
    for region in _regex(_URL).finditer(text):
        start, end = region.span(1)
        # A list of URLs may have no spaces.
        while (following := text.find("://", start, end)) >= 0:
            yield from _of_url(text, start, following)
            start = following + 3
        yield from _of_url(text, start, end)


def _of_url(text: str, start: int, end: int) -> Iterator[Span]:
    rest = text[start:end]
    if "@" not in rest:
        return
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    is_web = text[max(0, start - 8) : start].lower().endswith(("http://", "https://"))
    user, colon, password = authority.partition(":")
    at = authority.rfind("@")
    if not colon or "@" in user:
        # Alone before the @ stands a token in web addresses, elsewhere a user, a container (abfss) or a bucket
        # (s3://name@v1).
        cut = at if is_web else -1
    elif at < 0 and ("[" in user or _regex(_PORT).match(password)):
        return
    else:
        # Databases take a password with a slash or an @ as it is.
        ats = [match.start() for match in re.finditer("@", rest)]
        hosts = [place for place in ats if _regex(_HOST).match(rest, place + 1)]
        cut = hosts[-1] if hosts else ats[-1]
    if cut > 0 or (cut == 0 and is_web):
        yield start, start + cut, rest[:cut].partition(":")[2] or rest[:cut]
