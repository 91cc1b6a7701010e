"""Storage: keeps jobs as bytes and floats, and decides nothing. Read `base` first: the verbs and their promises."""
