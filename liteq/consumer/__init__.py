"""The consumer: the program that runs jobs. One dispatcher, which alone talks to the storage, and a pool of workers.

Read `dispatcher` first (the loop), then `pools.base` (what a pool is), then `consumer` (starting and stopping).
Everything here knows the engine, and nothing here knows `LiteQ`.
"""

from liteq.consumer.consumer import Consumer
from liteq.consumer.garbage import collect_less_often
from liteq.consumer.loading import AppNotFound, load_app
from liteq.consumer.log_setup import LogFormat, LogSetup
from liteq.consumer.options import ConsumerOptions
from liteq.shares import Share

__all__ = [
    "AppNotFound",
    "Consumer",
    "ConsumerOptions",
    "LogFormat",
    "LogSetup",
    "Share",
    "collect_less_often",
    "load_app",
]
