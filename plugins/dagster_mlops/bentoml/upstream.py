"""All use of BentoML's private names (1.4), each with the public one that is missing.

`tests/bentoml/test_upstream.py` fails when BentoML has it, so that the function here can go.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from dagster_mlops.core.extras import extra

if TYPE_CHECKING:
    from bentoml._internal.bento import BentoStore as BentoStore
    from bentoml._internal.models import ModelStore as ModelStore


def bento_store(folder: Path) -> "BentoStore":
    """BentoML's bento store in `folder`. The public functions know the one of the process's environment only.

    https://github.com/bentoml/BentoML/blob/v1.4.39/src/bentoml/bentos.py
    """
    return extra("bentoml._internal.bento").BentoStore(folder)


def model_store(folder: Path) -> "ModelStore":
    """BentoML's model store in `folder`: https://github.com/bentoml/BentoML/blob/v1.4.39/src/bentoml/models.py"""
    return extra("bentoml._internal.models").ModelStore(folder)
