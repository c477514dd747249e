"""All uses of Dagster's private names (1.13) for executors, each with the reason why no public name can replace it.

`tests/k8s/test_upstream.py` fails once Dagster has a public name, so that the name here can be removed.
"""

# Reads a config by a schema that is known only when Kubernetes is chosen; `validate_run_config` needs a whole job.
# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_config/validate.py
from dagster._config import process_config as process_config
