"""The options of Evidently's drift preset, refused when a check is defined rather than when it first runs."""

from collections.abc import Mapping, Sequence
from typing import Any

# Here, because importing Evidently takes seconds of each code location. A test compares with Evidently's own registry.
METHODS: Mapping[str, Sequence[str]] = {
    "num": (
        "anderson", "cramer_von_mises", "ed", "empirical_mmd", "es", "hellinger", "jensenshannon", "kl_div", "ks",
        "mannw", "psi", "t_test", "wasserstein",
    ),
    "cat": ("TVD", "chisquare", "fisher_exact", "g_test", "hellinger", "jensenshannon", "kl_div", "psi", "z"),
    "text": ("abs_text_content_drift", "perc_text_content_drift"),
}  # fmt: skip
_KINDS = {"cat_method": ("cat",), "num_method": ("num",), "text_method": ("text",)}
OPTIONS = (
    "cat_method", "cat_threshold", "embeddings", "embeddings_drift_method", "include_tests", "method", "num_method",
    "num_threshold", "per_column_method", "per_column_threshold", "text_method", "text_threshold", "threshold",
)  # fmt: skip
_OTHERS = {"columns": "columns", "drift_share": "drift_share"}  # those that the check itself has


def useless_preset(preset: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, bool]:
    """Faults of the options of a preset, for :func:`dagster_mlops.core.bounds.refuse_useless`.

    A method of your own is not a name but Evidently's ``StatTest`` object.
    """
    faults: dict[str, bool] = {}
    for option, value in preset.items():
        if option in _OTHERS:
            faults[f"preset has {option!r}; the check itself takes {_OTHERS[option]}="] = True
        elif option not in OPTIONS:
            faults[f"Evidently's DataDriftPreset has no option {option!r}; it has {', '.join(OPTIONS)}"] = True
        elif option.startswith("per_column"):
            if not isinstance(value, Mapping):
                faults[f"{option}={value!r} is not a mapping of columns"] = True
                continue
            for column, each in value.items():
                if columns is not None and column not in columns:
                    faults[f"{option} names {column!r}, which columns lacks"] = True
                faults |= _value_faults(f"{option} of {column!r}", option, each)
        else:
            faults |= _value_faults(option, option, value)
    return faults


def _value_faults(place: str, option: str, value: Any) -> dict[str, bool]:
    if option.endswith("threshold"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {f"{place}={value!r} is not a number above 0": not (is_number and value > 0) and value is not None}
    if option.endswith("method") and isinstance(value, str):
        names = sorted({name for kind in _KINDS.get(option, METHODS) for name in METHODS[kind]})
        return {f"{place}={value!r} is not a method; there are {', '.join(names)}": value not in names}
    return {}
