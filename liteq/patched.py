"""Where the worker process of greenlets begins: gevent patches the standard library before anything else of liteq, and
before the app, is imported. Imports nothing itself.
"""

from __future__ import annotations


def main(channel: int, sentinel: int, liveness: int | None) -> None:
    """Run jobs on greenlets until told to stop.

    Args:
        channel: descriptor of this end of the socket to the consumer.
        sentinel: descriptor whose end tells the consumer of ours.
        liveness: descriptor of the consumer's slot file; ``None``: there is none.
    """
    import gevent.monkey

    gevent.monkey.patch_all()
    from liteq.consumer.pools import hub

    hub.main(channel, sentinel, liveness)
