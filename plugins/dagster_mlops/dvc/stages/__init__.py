"""The stages of a `dvc.yaml`: how they are read, run and shown."""
