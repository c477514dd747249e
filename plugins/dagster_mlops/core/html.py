"""HTML pages with data in them: the data is never a part of the page's markup or code."""

import base64
import hashlib
import re
from typing import Any

_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_SCRIPT = re.compile(r"(?is)<script[^>]*>(.*?)</script")
# What Plotly makes of a label: the marks that change its look only. Links, and spans with a style, are left out.
_TAG_WITH_MORE = re.compile(r"(?i)<(?!/?(?:b|br|em|extra|i|sub|sup)\s*/?>)")
_HEAD = re.compile(r"(?i)<head>")


def json_in_script(text: str) -> str:
    r"""JSON as it may stand in a script element: the same object, with no character that ends the element or a line.

    >>> json_in_script('{"category": "</script>"}')
    '{"category": "\\u003c/script\\u003e"}'
    """
    return text.translate(_ESCAPES)


def figures_without_links(content: Any) -> Any:
    """JSON whose figures of Plotly show each label as it is: a category ``<a href=…>`` would be a link there.

    A page's policy does not keep a reader from following a link, which sends what stands in its address.
    https://plotly.com/chart-studio-help/adding-HTML-and-links-to-charts/

    >>> figures_without_links({"data": [{"x": ["<a href='https://evil.example'>ok</a>"]}], "layout": {}})["data"]
    [{'x': ["&lt;a href='https://evil.example'>ok&lt;/a>"]}]
    """
    if isinstance(content, dict):
        is_figure = "data" in content and isinstance(content.get("layout"), dict)
        return {key: (_plain if is_figure else figures_without_links)(value) for key, value in content.items()}
    return [figures_without_links(value) for value in content] if isinstance(content, list) else content


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    return _TAG_WITH_MORE.sub("&lt;", content) if isinstance(content, str) and "<" in content else content


def with_policy(page: str) -> str:
    """The page with a policy that lets only the scripts run that it has now, and lets nothing be sent or loaded.

    https://www.w3.org/TR/CSP3/ A browser then ignores handlers such as ``onerror`` and ``javascript:`` addresses, also
    where a script of the page makes markup of data. ``unsafe-eval`` lets these scripts compile code of their own.
    """
    digests = (hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(page))
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src 'unsafe-eval' {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    tag = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">'
    return _HEAD.sub(lambda _: tag, page, count=1)
