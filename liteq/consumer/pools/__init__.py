"""Pools: N workers of one kind. `base` says what every pool does."""
