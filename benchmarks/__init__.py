"""How fast liteq is, next to the fastest that raw SQLite could be: ``python -m benchmarks``.

Nothing here belongs to the package. Read `harness` first (what a scenario is), then `floors` (what it is compared
with), then any module of `scenarios`. `programs` are what runs in other processes; `targets` and `readme` read what
was recorded.
"""
