"""Masks credentials, so that records, logs, messages and metadata hold none.

A credential is recognized by its form, and by its value once a resource has used it, or if a variable of the
environment has it under such a name, or looks generated.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from dagster_mlops.core import secrets
from dagster_mlops.core.credential_spans import fixpoint, is_secret, spans
from dagster_mlops.provenance.upstream import all_variables

_REPEATED = 300  # characters of texts that are remembered


def mask_credentials(text: str) -> str:
    """Replace each credential in `text`; addresses keep their host, and pairs their name.

    >>> mask_credentials("postgresql://ml:secret@db/mlflow")
    'postgresql://***@db/mlflow'
    >>> mask_credentials("postgresql://ml:a/b@db/mlflow, http://mlflow:5000/delay@champion")
    'postgresql://***@db/mlflow, http://mlflow:5000/delay@champion'
    >>> mask_credentials("https://store/logs?account=ml&access_token=secret")
    'https://store/logs?account=ml&access_token=***'
    >>> mask_credentials('redis:6379,password=secret and {"secret_access_key": "secret", "tokenizer": "bert"}')
    'redis:6379,password=*** and {"secret_access_key": "***", "tokenizer": "bert"}'
    """
    _remember_environment()
    return _masked(text)


def _masked(text: str) -> str:
    text = secrets.without_secrets(text)
    return _by_form(text) if len(text) < _REPEATED else _by_form.__wrapped__(text)


def _without_spans(text: str) -> str:
    parts: list[str] = []
    end = 0
    for start, stop, *_ in spans(text):
        if start >= end:
            parts += [text[end:start], secrets.MASK]
        end = max(end, stop)
    return "".join([*parts, text[end:]]) if parts else text


@functools.lru_cache(maxsize=2048)  # the records of a run have the same address, asset and run
def _by_form(text: str) -> str:
    return fixpoint(_without_spans, text)


def masked_strings(value: Any, name: str = "") -> Any:
    """The same JSON with the credentials in each of its strings masked: in its text they have no clear end.

    `name` is that of the value in a mapping: a string of a name such as ``password`` is a credential.

    >>> masked_strings({"urls": ["https://host/rows.csv?api_key=abc", "s3://bucket/rows"], "rate": 0.1})
    {'urls': ['https://host/rows.csv?api_key=***', 's3://bucket/rows'], 'rate': 0.1}
    >>> masked_strings({"db": {"password": "secret"}, "token": {"env": "TOKEN"}})
    {'db': {'password': '***'}, 'token': {'env': 'TOKEN'}}
    >>> masked_strings({"password": {"value": "secret"}, "args": ["--token", "a1b2c3", "--port", "80"]})
    {'password': {'value': '***'}, 'args': ['--token', '***', '--port', '80']}
    """
    return current_mask()(value, name)


def current_mask() -> Callable[..., Any]:
    """:func:`masked_strings` for many values in a row: it looks for new variables once, here."""
    _remember_environment()
    return _with_masks


def _with_masks(value: Any, name: str = "") -> Any:
    if isinstance(value, str):
        return secrets.MASK if name and is_secret(name, value) else _masked(value)
    if isinstance(value, Mapping):
        return {_with_masks(key): _with_masks(below, _name_of(value, key, name)) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_with_masks(below, _option(before) or name) for before, below in zip(("", *value), value, strict=False)]
    return value


def remember_credentials(value: Any) -> None:
    """Mask the credentials in `value`, such as the settings of a tool, by their value in every text from now on."""
    secrets.remember(form for secret in _credentials_in(value) for form in (secret, unquote(secret)))


def _credentials_in(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str):
        yield from [value] if name and is_secret(name, value) else [span.secret for span in spans(value)]
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _credentials_in(below, _name_of(value, key, name))
    elif isinstance(value, list | tuple):
        for before, below in zip(("", *value), value, strict=False):
            yield from _credentials_in(below, _option(before) or name)


def _name_of(mapping: Mapping[Any, Any], key: Any, name: str) -> str:
    """The name of a value: its key, or what is beside or above it, as in ``{"name": "password", "value": …}``."""
    if key not in ("value", "Value", "ParameterValue"):
        return str(key)
    beside = (mapping.get(place) for place in ("name", "key", "Name", "Key", "ParameterKey"))
    return str(next(filter(None, beside), name or key))


def _option(word: Any) -> str:
    """The name of an argument that follows this word of a command."""
    return word if isinstance(word, str) and word.startswith("--") else ""


_OTHER = ("PWD", "OLDPWD", "PYTEST_CURRENT_TEST")  # a shell's working directories, and a test with its arguments
_environment: dict[Any, Any] = {}  # as it was remembered


def _remember_environment() -> None:
    """Remember the credentials of the environment if a variable has changed since."""
    global _environment
    variables = all_variables()
    if variables != _environment:
        _environment = dict(variables)
        by_name = {name: value for name, value in os.environ.items() if name not in _OTHER}
        remember_credentials(by_name)
        secrets.remember(value for value in by_name.values() if secrets.is_generated(value))
