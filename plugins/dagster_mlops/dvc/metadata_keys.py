"""Metadata keys that several modules of this folder write or read: users see them on the asset's page."""

CMD = "dvc/cmd"
OUTS = "dvc/outs"
PARAMS = "dvc/params"
REV = "dvc/rev"
STAGE = "dvc/stage"
