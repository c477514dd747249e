"""Masks the credentials in addresses, so that records, logs and messages hold none."""

import re
from collections.abc import Mapping
from typing import Any

# Alone before the @ stands a token in web addresses, elsewhere a user, a container (abfss) or a bucket (s3://name@v1).
# Databases take a password with a slash as it is. What looks like a port is not a password.
_CREDENTIALS = re.compile(
    r"(?:(?<=http://)|(?<=https://))[^/\s]*@"
    r"|(?<=://)(?:[^/\s:@\[]*:[^/\s]*@|[^/\s:@\[]+:(?!\d{2,5}(?:[/?#\s]|$))[^@\s]*@(?:[^/\s]*@)?)"
)
_SECRET_PARAMETERS = re.compile(r"(?i)([?&;][\w.-]*(?:password|passwd|pwd|token|secret|signature|sig|key)=)[^&;#\s]+")


def mask_credentials(text: str) -> str:
    """Replace the user and password of every URL in `text`, and secret-looking query parameters.

    >>> mask_credentials("postgresql://ml:secret@db/mlflow")
    'postgresql://***@db/mlflow'
    >>> mask_credentials("postgresql://ml:a/b@db/mlflow, http://mlflow:5000/delay@champion")
    'postgresql://***@db/mlflow, http://mlflow:5000/delay@champion'
    >>> mask_credentials("https://store/logs?account=ml&access_token=secret")
    'https://store/logs?account=ml&access_token=***'
    """
    return _SECRET_PARAMETERS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def masked_strings(value: Any) -> Any:
    """The same JSON with the credentials in each of its strings masked: in its text they have no clear end.

    >>> masked_strings({"urls": ["https://host/rows.csv?api_key=abc", "s3://bucket/rows"], "rate": 0.1})
    {'urls': ['https://host/rows.csv?api_key=***', 's3://bucket/rows'], 'rate': 0.1}
    """
    if isinstance(value, Mapping):
        return {name: masked_strings(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [masked_strings(below) for below in value]
    return mask_credentials(value) if isinstance(value, str) else value
