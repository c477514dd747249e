"""Deployments on this machine: server processes behind Envoy, started, verified, switched, tried and repaired."""
