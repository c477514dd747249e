"""Storage of a dataset version: pointer, objects, commit, push, locks."""
