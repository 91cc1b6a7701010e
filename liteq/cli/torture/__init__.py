"""``liteq torture``: real consumers and producers on the user's own disk, killed, stopped, starved; then a reckoning.

Read in this order: `run` (the course of it), `victims` (the app whose jobs are run), `torments` (what is done to it),
`verdict` (what was lost or run twice, and how that is known). What happens is written to a `diary` that liteq knows
nothing of: the verdict rests on it and not on liteq's own tables.
"""
