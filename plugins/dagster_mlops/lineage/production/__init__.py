"""The deployments of a Dagster instance, with the models and data behind them."""
