"""All use of Evidently's private names (0.7), each with the public one that is missing.

`tests/evidently/test_upstream.py` fails once there is one: then delete the function here.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.html import figures_without_links, json_in_script, with_policy
from dagster_mlops.core.secrets import without_secrets
from dagster_mlops.errors import MonitoringError

_HISTOGRAMS: ContextVar[dict[str, Any] | None] = ContextVar("_HISTOGRAMS", default=None)


@contextmanager
def one_histogram_per_column() -> Iterator[None]:
    """Draw the histogram of a column once for all its statistics, in the reports of one dataset inside the block.

    Evidently draws it anew for each of the seven statistics of a number, while a summary shows only the first. No
    option of Evidently turns the other six off, and most of a summary's time goes on them.
    https://github.com/evidentlyai/evidently/blob/v0.7.23/src/evidently/metrics/column_statistics.py
    """
    module: Any = extra("evidently.metrics.column_statistics")
    if not hasattr(module.distribution, "one_each"):
        module.distribution = _one_each(module.distribution)
    token = _HISTOGRAMS.set({})
    try:
        yield
    finally:
        _HISTOGRAMS.reset(token)


def _one_each(draw: Any) -> Any:
    def distribution(title: str, current: Any, reference: Any) -> Any:
        histograms, column = _HISTOGRAMS.get(), current.data.name
        if histograms is None:
            return draw(title, current, reference)
        if column not in histograms:
            histograms[column] = draw(title, current, reference)
        return [widget.copy(update={"title": title}) for widget in histograms[column]]

    distribution.one_each = True  # pyright: ignore[reportFunctionMemberAccess]
    return distribution


def safe_html(snapshot: Any) -> str:
    """The report as HTML in which names and values of the data run no code and are not links.

    Evidently writes them into a script element as JSON, where ``</script>`` in a category ends the element, and into
    figures, where ``<a href=…>`` is a link. No option escapes them.
    https://github.com/evidentlyai/evidently/blob/v0.7.23/src/evidently/legacy/utils/dashboard.py
    """
    page: str = snapshot.get_html_str(as_iframe=False)
    parts, end = [], 0
    for name in (r"\w+", r"additional_graphs_\w+"):
        begin = re.compile(rf"var {name} = (?=\{{)").search(page, end)
        if begin is None:
            raise MonitoringError(
                "this version of Evidently writes its HTML in another way, so that its data cannot be made safe. "
                "Install a version of Evidently that dagster-mlops has been tested with."
            )
        # The JSON itself says where it ends: its strings may hold anything.
        content, stop = json.JSONDecoder().raw_decode(page, begin.end())
        text = json.dumps(figures_without_links(content))
        parts += [page[end : begin.end()], json_in_script(without_secrets(text))]
        end = stop
    return with_policy("".join([*parts, page[end:]]))
