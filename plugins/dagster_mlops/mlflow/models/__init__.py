"""Models in MLflow: how they are logged in safe formats, verified and loaded."""
