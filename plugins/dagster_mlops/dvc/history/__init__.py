"""The versions of a dataset: list, compare and bring back."""
