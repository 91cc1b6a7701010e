"""The two programs: `liteq` (`main`) looks at a queue and puts it right, `liteq_consumer` (`consumer`) runs its jobs.

An edge of the house: everything here asks the front door and nothing behind it. `endings` says how a program ends,
`loading` finds the app, `output` shows things, `commands` holds what `liteq` can do, one module for each idea.
"""
