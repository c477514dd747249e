"""Promotions of a model of flights: a gate, people, a history, a rollback."""
