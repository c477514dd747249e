"""The places that the caller has named: only there are tools asked, with the caller's credentials."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from dagster_mlops.provenance import Inaccessible, Ref, mask_credentials

ALLOW = "DAGSTER_MLOPS_ALLOW"
"""The variable with further places, separated by commas."""
# The variables by which tools find their place when a ref names none.
_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "BENTOML_HOME"),
    *("DAGSTER_MLOPS_PREDICTION_LOG", "DAGSTER_MLOPS_STATE_DIR"),
)

# In an address, whatever some server takes for a step up or a slash; the real path of a folder has none.
_UP = re.compile(r"(?i)/(\.|%2e){2}([^\w.-]|$)|%2f|%5c|%25|[\\\x00-\x1f]")


class NamesPlaces(Protocol):
    """A source of places that the caller trusts, as Dagster's event log is."""

    def names(self, ref: Ref) -> bool:
        """True if something was made at the place of this ref."""
        ...


class Places:
    """The places that the caller has named, at which tools may be asked.

    A record comes out of a tag, a pointer or a log line that a colleague or a client may have written, and names places
    upstream. To ask there would send a token to any host, or open a checkout or a feature repository that runs code.
    The caller's places are those that the caller asks for (``--at``), those of the environment, the checkout that is
    the working directory, those in `allow` and in ``DAGSTER_MLOPS_ALLOW``, each with what lies below it, and those of
    Dagster's event log: see :meth:`EventLog.names <dagster_mlops.lineage.chain.sources.EventLog.names>`.

    >>> Places(["/srv"]).refusal(Ref("feast", "feature_view", "flights/weather", at="/srv/features")) is None
    True
    >>> Places().refusal(Ref("mlflow", "training_run", "1", at="https://elsewhere.example")).bucket
    'inaccessible'
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        words = (word.strip() for word in os.environ.get(ALLOW, "").split(","))
        self._allowed = [_plain(mask_credentials(place)) for place in (*allow, *words) if place]
        self._named: set[str] = set()
        self._sources: list[NamesPlaces] = []

    def add(self, place: str) -> None:
        """Count a place as one that the caller has named."""
        self._named.add(place)

    def trust(self, source: NamesPlaces) -> None:
        """Count the places of Dagster's event log as the caller's."""
        if source not in self._sources:
            self._sources.append(source)

    def refusal(self, ref: Ref) -> Inaccessible | None:
        """The reason why a tool is not asked at the place of a ref; None if it may be."""
        if not ref.at or self._has(ref.at) or any(source.names(ref) for source in self._sources):
            return None
        return Inaccessible(
            f"{ref.tool} is not asked at {ref.at}: a record names this place, and you did not. If it is one of yours, "
            f"allow it: --allow {ref.at}, or the variable {ALLOW}."
        )

    def _has(self, place: str) -> bool:
        plain, variables = _plain(place), filter(None, map(os.environ.get, _VARIABLES))
        return (
            place in self._named
            or any(_is_in(plain, above) for above in self._allowed)
            or any(plain == _plain(mask_credentials(value)) for value in variables)
            or plain == checkout_of(Path.cwd())
        )


def _is_in(place: str, above: str) -> bool:
    return place == above or (place.startswith(f"{above.rstrip('/')}/") and not ("://" in place and _UP.search(place)))


def checkout_of(folder: Path) -> str:
    """The checkout that holds a folder; empty if none does."""
    return next((str(top) for top in (folder, *folder.parents) if (top / ".git").exists()), "")


def is_same(place: str, other: str) -> bool:
    """True for one place in two spellings."""
    return _plain(mask_credentials(place)) == _plain(mask_credentials(other))


def _plain(place: str) -> str:
    """A place in one spelling: of a folder its real path, so that neither ``..`` nor a link leads out of it."""
    if "://" in place:
        return place.rstrip("/")
    return os.path.realpath(Path(place).expanduser())
