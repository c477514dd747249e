"""A training step: what is captured, logged and written on the run."""
