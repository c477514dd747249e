"""Supervisor has no public name for what `serving/upstream.py` does."""

import inspect

from supervisor import poller, supervisord

from dagster_mlops.serving import upstream


def test_supervisord_waits_a_second_that_no_option_shortens():
    source = inspect.getsource(supervisord.Supervisor.runforever)
    assert "timeout = 1 " in source and "poller.poll(timeout)" in source
    assert poller.Poller(None).poll(upstream.PAUSE) == ([], [])
