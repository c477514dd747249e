"""MLflow runs of Dagster steps: one for each materialization, found again, always closed."""
