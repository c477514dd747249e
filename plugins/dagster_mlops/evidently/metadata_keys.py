"""Metadata keys that several modules of this folder write or read: users see them on the asset's page."""

COLUMNS = "evidently/columns"
ROWS = "evidently/rows"
