"""All use of private names of Supervisor (4.3); ``python -m`` of this file is supervisord.

`tests/serving/test_upstream.py` fails when Supervisor has a public name, so that this file can go.
"""

from dagster_mlops.core.extras import extra

PAUSE = 0.1
"""Seconds between two looks of a supervisor at its programs."""


def main() -> None:
    """Run supervisord; it looks at its programs ten times a second.

    By itself it waits up to a second before it notices an end, and up to another before it starts the program again:
    https://github.com/Supervisor/supervisor/blob/4.3.0/supervisor/supervisord.py (``timeout = 1``)
    """
    poller = extra("supervisor.poller").Poller
    poll = poller.poll
    poller.poll = lambda self, timeout: poll(self, min(timeout, PAUSE))
    extra("supervisor.supervisord").main()


if __name__ == "__main__":
    main()
