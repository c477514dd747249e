"""Computed values in the type that their feature declares, whichever type Arrow infers from a piece of them."""

import pyarrow as pa
from feast import Field
from feast.types import Bytes, from_feast_to_pyarrow_type

from dagster_mlops.core.failures import raised_as
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import compute


def declared_values(values: pa.ChunkedArray, feature: Field, view: str) -> pa.ChunkedArray:
    """The values of an on-demand view's feature in its declared type; maps, structs and sets stay as they are.

    Raises:
        FeatureError: A value does not fit.
    """
    target = arrow_type(feature)
    if target is None or values.type == target:
        return values
    if pa.types.is_floating(values.type):
        values = compute.if_else(compute.is_nan(values), pa.scalar(None, values.type), values)
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), target)])
    if pa.types.is_nested(target) and not pa.types.is_list(target):
        return values
    problem = (
        f"on-demand view {view!r} declares {feature.name} as {feature.dtype}, and its function returns {values.type}"
    )
    with raised_as(FeatureError, problem, pa.ArrowException):
        # Digits beyond those of the type are cut off, as online; another kind of number is an error.
        is_rounded = pa.types.is_floating(target) or pa.types.is_timestamp(target)
        return values.cast(target, safe=not is_rounded)


def arrow_type(feature: Field) -> pa.DataType | None:
    """The Arrow type of a feature's values, None if Feast has none for it."""
    if feature.dtype == Bytes:  # which Feast's own function lacks
        return pa.binary()
    try:
        return from_feast_to_pyarrow_type(feature.dtype)
    except ValueError:
        return None
