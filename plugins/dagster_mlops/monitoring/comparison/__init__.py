"""Drift: an asset compared with a reference, column by column, by a measuring tool."""
