"""Packages of models that serve in Kubernetes."""
