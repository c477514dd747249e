"""Supervisor has no public name for what `serving/upstream.py` does."""

import inspect

from supervisor import poller, supervisord

from dagster_mlops.serving.local import upstream


def test_supervisord_waits_a_second_that_no_option_shortens():
    source = inspect.getsource(supervisord.Supervisor.runforever)
    assert "timeout = 1 " in source and "poller.poll(timeout)" in source
    assert poller.Poller(None).poll(upstream.PAUSE) == ([], [])


def test_ours_looks_more_often_and_then_runs_it(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(poller.Poller, "poll", lambda self, timeout: waits.append(timeout))
    monkeypatch.setattr(supervisord, "main", lambda: poller.Poller(None).poll(1))
    upstream.main()
    assert waits == [upstream.PAUSE]
