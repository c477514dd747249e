"""A training run once more: its recipe, its checkout and environment, and how the result compares."""
