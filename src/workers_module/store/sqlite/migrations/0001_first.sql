-- min_code: 1
--
-- Times are milliseconds since the epoch. States: 1 ready, 2 delayed, 3 active, 4 completed, 5 failed, 6 waiting for children.
-- A queue's row is never deleted (gone = 1 hides it), so that its number may be remembered.
CREATE TABLE wm_queue (
    q              INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,
    gone           INTEGER NOT NULL DEFAULT 0,
    paused         INTEGER NOT NULL DEFAULT 0,
    concurrency    INTEGER,
    rate_max       INTEGER,
    rate_ms        INTEGER,
    rate_used      INTEGER NOT NULL DEFAULT 0,
    rate_until     INTEGER NOT NULL DEFAULT 0,
    event_cap      INTEGER NOT NULL DEFAULT 10000,
    event_last     INTEGER NOT NULL DEFAULT 0,
    swept          INTEGER NOT NULL DEFAULT -1,
    tagsets        INTEGER NOT NULL DEFAULT 0,
    ids            INTEGER NOT NULL DEFAULT 0,
    back           INTEGER NOT NULL DEFAULT 0,
    front          INTEGER NOT NULL DEFAULT 0,
    waiting        INTEGER NOT NULL DEFAULT 0,
    delayed        INTEGER NOT NULL DEFAULT 0,
    active         INTEGER NOT NULL DEFAULT 0,
    completed      INTEGER NOT NULL DEFAULT 0,
    failed         INTEGER NOT NULL DEFAULT 0,
    parked         INTEGER NOT NULL DEFAULT 0,
    prioritized    INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE wm_job (
    n            INTEGER PRIMARY KEY AUTOINCREMENT,
    q            INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    tagset       INTEGER NOT NULL DEFAULT 0,
    priority     INTEGER NOT NULL DEFAULT 0,
    seq          INTEGER NOT NULL,
    due          INTEGER,
    ended        INTEGER,
    lease        INTEGER,
    lapsed       INTEGER,
    fence        INTEGER NOT NULL DEFAULT 0,
    token        TEXT,
    attempts     INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL DEFAULT 1,
    crashes      INTEGER NOT NULL DEFAULT 0,
    added        INTEGER NOT NULL,
    started      INTEGER,
    delay        INTEGER NOT NULL DEFAULT 0,
    lifo         INTEGER NOT NULL DEFAULT 0,
    on_crash     INTEGER NOT NULL DEFAULT 0,
    cancel       INTEGER NOT NULL DEFAULT 0,
    big          INTEGER NOT NULL DEFAULT 0,
    logged       INTEGER NOT NULL DEFAULT 0,
    children     INTEGER NOT NULL DEFAULT 0,
    pending      INTEGER NOT NULL DEFAULT 0,
    broken       INTEGER NOT NULL DEFAULT 0,
    policy       INTEGER NOT NULL DEFAULT 0,
    parent_queue TEXT,
    parent_id    TEXT,
    id           TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    dedup        TEXT,
    schedule     TEXT,
    worker       TEXT,
    deferred     TEXT,
    reason       TEXT,
    opts         BLOB    NOT NULL,
    progress     BLOB,
    trace        BLOB,
    result       BLOB,
    data         BLOB    NOT NULL
);
-- By length first: numbers stored one after the other then lie beside each other, whatever their number of digits.
CREATE UNIQUE INDEX wm_job_id ON wm_job (q, length(id), id);
CREATE INDEX wm_job_ready  ON wm_job (q, tagset, priority, seq) WHERE state = 1;
CREATE INDEX wm_job_due    ON wm_job (q, due, seq)              WHERE state = 2;
CREATE INDEX wm_job_active ON wm_job (q, seq)                   WHERE state = 3;
CREATE INDEX wm_job_ended  ON wm_job (q, state, ended, seq)     WHERE state IN (4, 5);
CREATE INDEX wm_job_parked ON wm_job (q, seq)                   WHERE state = 6;

-- Values over 4 kB lie outside their job, whose row is rewritten at each change of state: k = n * 8 + part.
CREATE TABLE wm_blob (k INTEGER PRIMARY KEY, value BLOB NOT NULL);

CREATE TABLE wm_tagset (
    q    INTEGER NOT NULL,
    id   INTEGER NOT NULL,
    tags TEXT    NOT NULL,
    PRIMARY KEY (q, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX wm_tagset_tags ON wm_tagset (q, tags);

CREATE TABLE wm_dedup (
    q     INTEGER NOT NULL,
    key   TEXT    NOT NULL,
    id    TEXT    NOT NULL,
    until INTEGER,
    next  TEXT,
    PRIMARY KEY (q, key)
) WITHOUT ROWID;
CREATE INDEX wm_dedup_until ON wm_dedup (q, until) WHERE until IS NOT NULL;

-- A parent's children, kept as long as the parent: 0 pending, 1 processed, 2 failed, 3 ignored.
CREATE TABLE wm_dep (
    parent INTEGER NOT NULL,
    i      INTEGER NOT NULL,
    queue  TEXT    NOT NULL,
    id     TEXT    NOT NULL,
    state  INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    value  BLOB,
    PRIMARY KEY (parent, i)
) WITHOUT ROWID;
CREATE UNIQUE INDEX wm_dep_child ON wm_dep (parent, queue, id);

CREATE TABLE wm_log (
    n    INTEGER NOT NULL,
    i    INTEGER NOT NULL,
    line TEXT    NOT NULL,
    PRIMARY KEY (n, i)
) WITHOUT ROWID;

-- One row for all events of a call; last is the number of its last event in the queue.
CREATE TABLE wm_event (
    q     INTEGER NOT NULL,
    last  INTEGER NOT NULL,
    size  INTEGER NOT NULL,
    body  TEXT    NOT NULL,
    PRIMARY KEY (q, last)
) WITHOUT ROWID;

CREATE TABLE wm_schedule (
    n      INTEGER PRIMARY KEY,
    q      INTEGER NOT NULL,
    id     TEXT    NOT NULL,
    slot   INTEGER NOT NULL,
    count  INTEGER NOT NULL DEFAULT 0,
    paused INTEGER NOT NULL DEFAULT 0,
    body   TEXT    NOT NULL,
    UNIQUE (q, id)
);
CREATE INDEX wm_schedule_slot ON wm_schedule (q, slot);

-- minute is the number of minutes since the epoch; -1 holds the sum since ever, -2 the first minute, -3 how many are kept.
CREATE TABLE wm_metric (
    q      INTEGER NOT NULL,
    kind   INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    num    INTEGER NOT NULL,
    PRIMARY KEY (q, kind, minute)
) WITHOUT ROWID;

CREATE TABLE wm_lock (
    name  TEXT    PRIMARY KEY,
    owner TEXT    NOT NULL,
    fence INTEGER NOT NULL,
    until INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE wm_worker (
    id     TEXT    PRIMARY KEY,
    until  INTEGER NOT NULL,
    seen   INTEGER NOT NULL,
    orders TEXT,
    body   TEXT    NOT NULL
) WITHOUT ROWID;
