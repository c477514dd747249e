"""Metadata keys that several modules of this folder write or read: users see them on the asset's page."""

CMD = "dvc/cmd"
COLUMNS_CHANGED = "dvc/columns_changed"
OUTS = "dvc/outs"
PARAMS = "dvc/params"
REV = "dvc/rev"
ROWS_DELTA = "dvc/rows_delta"
STAGE = "dvc/stage"
