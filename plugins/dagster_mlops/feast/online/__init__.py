"""The online store: writes that keep newer events, materialization and reads."""
