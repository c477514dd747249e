"""How a version of a dataset is stored: pointer, objects, commit, push, locks."""
