"""Masks the credentials in addresses, so that records, logs and messages hold none."""

import re

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
