"""Predictions for the rows of a dataframe asset, in batches."""
