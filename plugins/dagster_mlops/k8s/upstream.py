"""All use of Dagster's private names (1.13) for executors, each with the public one that is missing.

`tests/k8s/test_upstream.py` fails when Dagster has it, so that the name here can go.
"""

# Reads a config by a schema that is known only when Kubernetes is chosen; `validate_run_config` wants a whole job.
# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_config/validate.py
from dagster._config import process_config as process_config
