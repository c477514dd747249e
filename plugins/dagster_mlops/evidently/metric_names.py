"""The metrics of a performance check, by task: our name → Evidently's."""

METRICS = {
    "classification": {
        "roc_auc": "RocAuc",
        "f1": "F1Score",
        "precision": "Precision",
        "recall": "Recall",
        "accuracy": "Accuracy",
        "log_loss": "LogLoss",
    },
    "regression": {"r2": "R2Score", "rmse": "RMSE", "mae": "MAE"},
}
