"""The tables of a liteq SQLite file, and how an older file becomes a newer one.

A job's row is written once and stays put; its state is which small table holds its id. Moving between states is then a
delete and an insert in narrow b-trees, whatever the payload's size and however many jobs wait (measured against one
table with partial indexes: 8.9 against 13.8 µs a job, 7.6 against 24.2 with 1,000,000 waiting).

Every name begins with ``liteq_``, and the schema's version lives in a table of its own rather than in ``user_version``,
because the file may be the app's own.
"""

from __future__ import annotations

import sqlite3

from liteq.errors import StorageTooNew

#: In `liteq_done.state`; numbers because they take no room in a row.
SUCCEEDED, FAILED, REVOKED, EXPIRED = 0, 1, 2, 3

_COUNTERS = """
    claim INTEGER NOT NULL,     -- raised by every claim, never lowered: the fencing token
    attempt INTEGER NOT NULL,   -- attempts started and not given back
    base INTEGER NOT NULL,      -- what `attempt` was at the last requeue
    crashes INTEGER NOT NULL    -- attempts since then that ended with the death of a worker
"""

_VERSION_1 = f"""
CREATE TABLE liteq_meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE liteq_job (
    id INTEGER PRIMARY KEY,     -- the order of enqueue; never reused (`remove` keeps the newest one as a blank row)
    rnd INTEGER NOT NULL,       -- the random part of a generated public id: "<id>-<rnd in hex>"
    cid TEXT,                   -- or the caller's own id
    queue TEXT NOT NULL,
    task TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due REAL,
    expires REAL,
    created REAL NOT NULL,
    options TEXT,               -- JSON: what this call overrides of its task's options
    summary TEXT,               -- the arguments for people, where the payload cannot be read
    payload BLOB
);
CREATE UNIQUE INDEX liteq_job_cid ON liteq_job (cid) WHERE cid IS NOT NULL;
CREATE INDEX liteq_job_expires ON liteq_job (expires) WHERE expires IS NOT NULL;

CREATE TABLE liteq_ready (
    queue TEXT NOT NULL, priority INTEGER NOT NULL, id INTEGER NOT NULL, {_COUNTERS},
    PRIMARY KEY (queue, priority DESC, id)
) WITHOUT ROWID;

CREATE TABLE liteq_scheduled (
    due REAL NOT NULL, id INTEGER NOT NULL, queue TEXT NOT NULL, priority INTEGER NOT NULL, {_COUNTERS},
    PRIMARY KEY (due, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX liteq_scheduled_id ON liteq_scheduled (id);

CREATE TABLE liteq_running (
    id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, started REAL NOT NULL, {_COUNTERS}
);

CREATE TABLE liteq_blocked (id INTEGER PRIMARY KEY, reason TEXT NOT NULL, {_COUNTERS});
CREATE INDEX liteq_blocked_reason ON liteq_blocked (reason, id);

CREATE TABLE liteq_done (
    id INTEGER PRIMARY KEY, state INTEGER NOT NULL, {_COUNTERS},
    started REAL, finished REAL NOT NULL, result BLOB, reason TEXT
);
CREATE INDEX liteq_done_unsuccessful ON liteq_done (state, finished) WHERE state <> {SUCCEEDED};

CREATE TABLE liteq_attempt (    -- attempts that did not succeed; one that did is read off liteq_done
    id INTEGER PRIMARY KEY, job INTEGER NOT NULL, number INTEGER NOT NULL, ending TEXT NOT NULL,
    started REAL, finished REAL NOT NULL,
    error_type TEXT NOT NULL, message TEXT NOT NULL, traceback TEXT NOT NULL, details TEXT NOT NULL
);
CREATE INDEX liteq_attempt_job ON liteq_attempt (job);

CREATE TABLE liteq_progress (id INTEGER PRIMARY KEY, done REAL NOT NULL, total REAL, message TEXT NOT NULL);
CREATE TABLE liteq_mark (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE liteq_owner (id INTEGER PRIMARY KEY AUTOINCREMENT, slot TEXT NOT NULL, info TEXT NOT NULL);

-- Triggers, so that storing a job is one statement, which also means one call from Python and an autocommit.
CREATE TRIGGER liteq_job_ready AFTER INSERT ON liteq_job WHEN new.due IS NULL OR new.due <= new.created BEGIN
    INSERT INTO liteq_ready VALUES (new.queue, new.priority, new.id, 0, 0, 0, 0);
END;
CREATE TRIGGER liteq_job_scheduled AFTER INSERT ON liteq_job WHEN new.due > new.created BEGIN
    INSERT INTO liteq_scheduled VALUES (new.due, new.id, new.queue, new.priority, 0, 0, 0, 0);
END;
"""

_VERSION_2 = f"""
-- What is known of an attempt whose worker process died: bytes, seconds, the last lines that it logged.
ALTER TABLE liteq_attempt ADD COLUMN peak_rss INTEGER;
ALTER TABLE liteq_attempt ADD COLUMN cpu_time REAL;
ALTER TABLE liteq_attempt ADD COLUMN log TEXT NOT NULL DEFAULT '';

-- The columns are the fields of `liteq.schedule.Schedule`, which says what they mean.
CREATE TABLE liteq_schedule (
    name TEXT PRIMARY KEY, task TEXT NOT NULL, trigger TEXT NOT NULL, payload BLOB NOT NULL, summary TEXT,
    queue TEXT NOT NULL, priority INTEGER NOT NULL, options TEXT, expires REAL,
    catch_up TEXT NOT NULL, overlap TEXT NOT NULL, grace REAL, jitter REAL NOT NULL, "start" REAL, "end" REAL,
    max_runs INTEGER,
    declared TEXT, edited INTEGER NOT NULL, paused INTEGER NOT NULL, orphaned INTEGER NOT NULL,
    created REAL NOT NULL, version INTEGER NOT NULL, looked REAL NOT NULL,
    slot REAL, due REAL, boot TEXT, ran TEXT NOT NULL, runs INTEGER NOT NULL, skipped INTEGER NOT NULL,
    last_slot REAL, last_run REAL, last_job INTEGER, last_id TEXT, last_outcome TEXT, last_finished REAL
);
CREATE INDEX liteq_schedule_due ON liteq_schedule (due, name) WHERE due IS NOT NULL;
CREATE INDEX liteq_schedule_boot ON liteq_schedule (boot) WHERE boot IS NOT NULL;
CREATE INDEX liteq_schedule_last_job ON liteq_schedule (last_job) WHERE last_job IS NOT NULL;

-- How its last run ended is known for as long as the schedule, also when the job is purged.
CREATE TRIGGER liteq_schedule_outcome AFTER DELETE ON liteq_done BEGIN
    UPDATE liteq_schedule SET
        last_outcome = CASE old.state WHEN {SUCCEEDED} THEN 'succeeded' WHEN {FAILED} THEN 'failed'
                       WHEN {REVOKED} THEN 'revoked' ELSE 'expired' END,
        last_finished = old.finished
    WHERE last_job = old.id;
END;

-- Locks and limits: the gates at which somebody is, and who is there; see `liteq.storage.sqlite_limits`.
CREATE TABLE liteq_gate (name TEXT PRIMARY KEY, slots INTEGER NOT NULL, task TEXT) WITHOUT ROWID;
CREATE TABLE liteq_place (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    gate TEXT NOT NULL,
    held INTEGER NOT NULL,      -- 1: holds a slot; 0: stands in line
    priority INTEGER NOT NULL, ticket INTEGER NOT NULL,
    job INTEGER, owner INTEGER, -- who: a job, or a process
    queue TEXT,                 -- of a blocked job; NULL: a caller
    since REAL NOT NULL,
    woken REAL                  -- when the blocked job was let out, until it is claimed
);
CREATE INDEX liteq_place_line ON liteq_place (gate, held, priority DESC, ticket, id);
CREATE INDEX liteq_place_job ON liteq_place (job) WHERE job IS NOT NULL;
CREATE INDEX liteq_place_held ON liteq_place (job) WHERE held = 1;
CREATE INDEX liteq_place_owner ON liteq_place (owner) WHERE owner IS NOT NULL;
CREATE INDEX liteq_place_woken ON liteq_place (gate, woken) WHERE woken IS NOT NULL;
"""


def _seconds(time: str) -> str:
    """Seconds since 1970 of what SQLite reads as a time, to the millisecond, which is as exact as it is."""
    return f"round((julianday({time}) - 2440587.5) * 86400.0, 3)"


def _instant(column: str) -> str:
    """A number is seconds since 1970, a text what SQLite reads as a time; NULL where it can read none."""
    return f"CASE typeof({column}) WHEN 'text' THEN {_seconds(column)} ELSE {column} END"


#: A number that can be a time: not infinite, and not beyond the last year that a datetime has.
_IS_TIME = "BETWEEN -62135596800 AND 253402300799"
_NUMBER = "IN ('integer', 'real')"
_HEX = "[0-9a-f]"


def _is_json(column: str, kind: str) -> str:
    is_kind = f"CASE json_valid({column}) WHEN 1 THEN json_type({column}) = '{kind}' ELSE 0 END"
    return f"({column} IS NULL OR CASE typeof({column}) WHEN 'text' THEN {is_kind} ELSE 0 END)"


def _is_name(column: str) -> str:
    return f"(typeof({column}) = 'text' AND length({column}) BETWEEN 1 AND 255 AND NOT instr({column}, char(0)))"


def _refusals(rules: dict[str, str]) -> str:
    """Statements that end an INSERT whose row breaks a rule; what is unknown (NULL) breaks it too."""
    return "\n    ".join(
        f"SELECT RAISE(ABORT, 'liteq_enqueue: {words}') WHERE NOT ifnull({rule}, 0);" for words, rule in rules.items()
    )


# Enqueue by SQL alone: `INSERT INTO liteq_enqueue (task, args) VALUES (…)`, from any language, the shell, or a trigger
# of the app's own. The payload is what JSONSerializer writes for a call. See docs/transactions.md.
_SQL_ENQUEUE = f"""
CREATE VIEW liteq_enqueue AS SELECT
    NULL AS task, NULL AS args, NULL AS kwargs, NULL AS queue, NULL AS priority, NULL AS delay, NULL AS run_at,
    NULL AS expires, NULL AS id
WHERE 0;

CREATE TRIGGER liteq_enqueue_insert INSTEAD OF INSERT ON liteq_enqueue BEGIN
    {
    _refusals(
        {
            "task must be the name of a task, a text of 1 to 255 characters": _is_name("new.task"),
            'args must be a text that holds a JSON array, such as ["a@b.c"]': _is_json("new.args", "array"),
            "kwargs must be a text that holds a JSON object": _is_json("new.kwargs", "object"),
            "queue must be a text of 1 to 255 characters": f"new.queue IS NULL OR {_is_name('new.queue')}",
            "priority must be an integer": "typeof(new.priority) IN ('integer', 'null')",
            "delay or run_at, not both": "new.delay IS NULL OR new.run_at IS NULL",
            "delay must be a number of seconds, 0 or more": (
                f"new.delay IS NULL OR (typeof(new.delay) {_NUMBER} AND new.delay BETWEEN 0 AND 200000000000)"
            ),
            "run_at must be seconds since 1970 or a time such as 2030-01-31 12:00:00": (
                f"new.run_at IS NULL OR (typeof(new.run_at) <> 'blob' AND {_instant('new.run_at')} {_IS_TIME})"
            ),
            "expires must be a number of seconds from now, or a time such as 2030-01-31 12:00:00": (
                f"CASE WHEN typeof(new.expires) {_NUMBER} THEN new.expires BETWEEN 0 AND 200000000000 "
                f"WHEN typeof(new.expires) = 'text' THEN {_instant('new.expires')} {_IS_TIME} "
                "ELSE new.expires IS NULL END"
            ),
            "id must be a text of 1 to 255 characters": f"new.id IS NULL OR {_is_name('new.id')}",
            "id looks like one that liteq has generated (12-0123456789)": (
                f"new.id IS NULL OR new.id NOT GLOB '[1-9]*-{_HEX * 10}' "
                "OR rtrim(substr(new.id, 1, length(new.id) - 11), '0123456789') <> ''"
            ),
            "the database must be encoded as UTF-8": "length(CAST('a' AS BLOB)) = 1",
        }
    )
}
    INSERT INTO liteq_job (rnd, cid, task, queue, priority, payload, created, due, expires)
    SELECT
        random() & 1099511627775, new.id, new.task, ifnull(new.queue, 'default'), ifnull(new.priority, 0),
        CAST('[' || json(ifnull(new.args, '[]')) || ',' || json(ifnull(new.kwargs, '{{}}')) || ']' AS BLOB),
        now,
        ifnull(now + new.delay, {_instant("new.run_at")}),
        max(now, CASE typeof(new.expires) WHEN 'text' THEN {_instant("new.expires")} ELSE now + new.expires END)
    FROM (SELECT {_seconds("'now'")} AS now)
    WHERE new.id IS NULL OR NOT EXISTS (SELECT 1 FROM liteq_job WHERE cid = new.id);
END;
"""

_UNIQUE_KEYS = """
-- Unique keys; see `liteq.storage.sqlite_unique`. Jobs without one do not name the column, so it costs them nothing.
ALTER TABLE liteq_job ADD COLUMN ukey TEXT;
CREATE TABLE liteq_unique (
    key TEXT NOT NULL, task TEXT NOT NULL,
    job INTEGER NOT NULL,       -- the last to take the key; it holds it for as long as it has not finished
    after INTEGER,              -- the running job of the key that it follows, until that one has ended
    PRIMARY KEY (key, task)
) WITHOUT ROWID;
CREATE INDEX liteq_unique_after ON liteq_unique (after) WHERE after IS NOT NULL;
CREATE INDEX liteq_unique_following ON liteq_unique (job) WHERE after IS NOT NULL;
CREATE TRIGGER liteq_job_unique AFTER INSERT ON liteq_job WHEN new.ukey IS NOT NULL BEGIN
    INSERT OR REPLACE INTO liteq_unique (key, task, job) VALUES (new.ukey, new.task, new.id);
END;
"""

_STEPS = """
-- What jobs have got done and are not to do again: the fields of `liteq.step.Step`, which says what they mean.
CREATE TABLE liteq_step (
    job INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
    state TEXT NOT NULL, position INTEGER NOT NULL, attempt INTEGER NOT NULL, recorded REAL NOT NULL,
    due REAL, result BLOB,
    PRIMARY KEY (job, kind, name, number)
) WITHOUT ROWID;

-- What was sent to jobs and not taken yet; the first is taken first.
CREATE TABLE liteq_event (
    id INTEGER PRIMARY KEY, job INTEGER NOT NULL, name TEXT NOT NULL, data BLOB, sent REAL NOT NULL
);
CREATE INDEX liteq_event_job ON liteq_event (job, name, id);

-- Which event wakes a job that gave its worker back to wait. It holds while the job is blocked or scheduled under this
-- claim number.
CREATE TABLE liteq_wait (job INTEGER PRIMARY KEY, event TEXT NOT NULL, claim INTEGER NOT NULL);
"""

_RATE_LIMITS = """
-- Rate limits: when the tokens of a gate will be full again, and since when none has run over; see `liteq.rates`.
CREATE TABLE liteq_bucket (
    gate TEXT PRIMARY KEY, rate TEXT NOT NULL, full_at REAL NOT NULL, brimmed REAL NOT NULL,
    due REAL,                   -- when the next token comes, while somebody waits for it
    looked REAL NOT NULL        -- when that was found out: in the future, where the clock was set back
) WITHOUT ROWID;
CREATE INDEX liteq_bucket_due ON liteq_bucket (due) WHERE due IS NOT NULL;
CREATE INDEX liteq_bucket_looked ON liteq_bucket (looked) WHERE due IS NOT NULL;
CREATE INDEX liteq_bucket_full ON liteq_bucket (full_at);
"""

_PLANS = """
-- Plans: jobs that wait, or have waited, for other jobs; see `liteq.plan` and `liteq.storage.sqlite_plans`.
CREATE TABLE liteq_dependent (
    id INTEGER PRIMARY KEY,
    missing INTEGER NOT NULL,   -- its edges whose prerequisite has not finished
    shape TEXT,                 -- how the results that are passed become arguments
    cause INTEGER,              -- because of which job it ended
    delay REAL, lasts REAL      -- seconds from the end of the last prerequisite
);
CREATE INDEX liteq_dependent_cause ON liteq_dependent (cause) WHERE cause IS NOT NULL;
CREATE TABLE liteq_edge (
    prior INTEGER NOT NULL, job INTEGER NOT NULL, position INTEGER NOT NULL,
    rule INTEGER NOT NULL,      -- `liteq.plan.Rule`
    passes INTEGER NOT NULL,
    PRIMARY KEY (prior, job, position)
) WITHOUT ROWID;
CREATE INDEX liteq_edge_job ON liteq_edge (job, position);
CREATE INDEX liteq_edge_handler ON liteq_edge (rule) WHERE rule = 2;
"""

#: The n-th script takes a file from version n to n + 1.
MIGRATIONS = (_VERSION_1, _VERSION_2, _SQL_ENQUEUE, _UNIQUE_KEYS, _STEPS, _RATE_LIMITS, _PLANS)
CURRENT = len(MIGRATIONS)


def version(connection: sqlite3.Connection) -> int:
    """The schema version of an open file; 0 where it has no liteq tables."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'liteq_meta'").fetchone()
    if known is None:
        return 0
    row = connection.execute("SELECT value FROM liteq_meta WHERE key = 'schema'").fetchone()
    return int(row[0]) if row else 0


def refuse_newer(found: int, location: str) -> None:
    """Raise StorageTooNew if this library does not know version ``found``."""
    if found > CURRENT:
        raise StorageTooNew(
            f"{location} was written by a newer liteq (schema {found}, this one knows up to {CURRENT}): "
            "nothing was changed; upgrade liteq here"
        )


def migrate(connection: sqlite3.Connection, location: str) -> None:
    """Bring the file to the current version, inside the transaction that the caller has begun.

    Raises:
        StorageTooNew: it is newer than this library.
    """
    found = version(connection)
    refuse_newer(found, location)
    for script in MIGRATIONS[found:]:
        for statement in _statements(script):
            connection.execute(statement)
    if found < CURRENT:
        connection.execute("INSERT OR REPLACE INTO liteq_meta VALUES ('schema', ?)", (CURRENT,))


def _statements(script: str) -> list[str]:
    """Split a script; `executescript` would commit the caller's transaction first."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    return statements
