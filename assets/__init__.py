"""The reference code location: will this flight arrive more than 15 minutes late, asked at scheduled departure."""

import gc

import dagster  # noqa: F401 (its hundred thousands of objects are what the next line is for)

# They live as long as the process. Unfrozen, each load of this location walks them all in a garbage collection, and
# each step process forked from the preloaded server copies the memory they lie in (see gc.freeze in Python's docs).
gc.freeze()
