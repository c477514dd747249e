"""The glue measured against the raw tools, in the same run: ``python -m tests.benchmarks [name…]``."""
