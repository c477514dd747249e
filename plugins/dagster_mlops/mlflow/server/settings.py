"""MLflow's settings as environment variables."""


def request_limits(*, timeout: int | None = None, retries: int | None = None) -> dict[str, str]:
    """The variables that bound MLflow's HTTP requests, for :func:`environment`. None leaves a bound as it is.

    By default MLflow waits 120 seconds for a response, and retries 7 times, at once and then after 4, 8, 16, 32, 64
    and 120 seconds, when there is none or its status is 408, 429, 500, 502, 503 or 504.

    >>> request_limits(timeout=5, retries=1)
    {'MLFLOW_HTTP_REQUEST_TIMEOUT': '5', 'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '1'}
    """
    bounds = {"MLFLOW_HTTP_REQUEST_TIMEOUT": timeout, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries}
    return {name: str(value) for name, value in bounds.items() if value is not None}
