"""Repeats a training run: its recipe, checkout and environment, and the comparison of the results."""
