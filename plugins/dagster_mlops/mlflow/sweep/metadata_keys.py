"""Metadata keys that several modules of this folder write or read, shown on the asset's page."""

BEST_VALUE = "optuna/best_value"
SECONDS = "optuna/seconds"
STORAGE = "optuna/storage"
STUDY_NAME = "optuna/study"
TRIAL_NUMBER = "optuna/trial"
