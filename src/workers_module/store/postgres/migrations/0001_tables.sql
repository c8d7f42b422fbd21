-- min_code: 1
--
-- Text that may hold a NUL, which Postgres keeps in no text, is kept as bytes (UTF-8); so is JSON, as it was given.
-- Times are milliseconds since the epoch. States: 1 ready, 2 delayed, 3 active, 4 completed, 5 failed, 6 waiting for
-- children; 7 in counters: ready, with a priority. A queue's row is never deleted (gone hides it).
-- By this a transaction of the application's shows that it is in this database and not in a namesake.
INSERT INTO meta (key, value) VALUES ('home', gen_random_uuid()::text);

CREATE TABLE queue (
    q           int     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text    NOT NULL UNIQUE,
    ids         regclass,
    events      regclass,
    gone        boolean NOT NULL DEFAULT false,
    paused      boolean NOT NULL DEFAULT false,
    concurrency int,
    rate_max    bigint,
    rate_ms     bigint,
    rate_used   bigint  NOT NULL DEFAULT 0,
    rate_until  bigint  NOT NULL DEFAULT 0,
    event_cap   int     NOT NULL DEFAULT 10000
);

-- What sweeps and trimming write down, apart from the settings: whoever reads those must never wait for these.
CREATE TABLE upkeep (
    q       int    PRIMARY KEY,
    swept   bigint NOT NULL DEFAULT -1,
    trimmed bigint NOT NULL DEFAULT 0
);

-- Limits to the ended jobs of a state (-1: none) that a call could not apply, for another did: the next sweep does. Each
-- connection has rows of its own, so that none waits for another.
CREATE TABLE untrimmed (
    q     int      NOT NULL,
    pid   int      NOT NULL,
    state smallint NOT NULL,
    count bigint   NOT NULL,
    age   bigint   NOT NULL,
    PRIMARY KEY (q, pid, state, count, age)
) WITH (fillfactor = 50);

-- Numbers of jobs, and their places in the order: a place is 1024 times a number, so that a batch needs one.
CREATE SEQUENCE place;

-- What is always there and of one size comes first: past a column that may be null, or vary, each access costs a walk.
CREATE TABLE job (
    n            bigint   NOT NULL,
    seq          bigint   NOT NULL,
    added        bigint   NOT NULL,
    delay        bigint   NOT NULL DEFAULT 0,
    q            int      NOT NULL,
    tagset       int      NOT NULL DEFAULT 0,
    priority     int      NOT NULL DEFAULT 0,
    fence        int      NOT NULL DEFAULT 0,
    attempts     int      NOT NULL DEFAULT 0,
    max_attempts int      NOT NULL DEFAULT 1,
    crashes      int      NOT NULL DEFAULT 0,
    logged       int      NOT NULL DEFAULT 0,
    children     int      NOT NULL DEFAULT 0,
    pending      int      NOT NULL DEFAULT 0,
    broken       int      NOT NULL DEFAULT 0,
    state        smallint NOT NULL,
    policy       smallint NOT NULL DEFAULT 0,
    lifo         boolean  NOT NULL DEFAULT false,
    on_crash     boolean  NOT NULL DEFAULT false,
    cancel       boolean  NOT NULL DEFAULT false,
    id           text     COLLATE "C" NOT NULL,
    name         bytea    NOT NULL,
    opts         bytea    NOT NULL,
    due          bigint,
    ended        bigint,
    lease        bigint,
    lapsed       bigint,
    started      bigint,
    token        text,
    parent_queue text,
    parent_id    text,
    dedup        text,
    schedule     text,
    worker       bytea,
    deferred     text,
    reason       bytea,
    progress     bytea,
    trace        bytea,
    result       bytea,
    data         bytea    NOT NULL,
    PRIMARY KEY (id, q)
) WITH (
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05
);
-- A job is found by its id and queue (the id first, or a planner without statistics reads a whole queue), and by nothing
-- else: each index costs a microsecond or two whenever a job changes its state. None holds the lease, so that a renewal
-- touches none. n is the number that what hangs on a job refers to.
CREATE INDEX job_ready  ON job (q, tagset, priority, seq) WHERE state = 1;
CREATE INDEX job_due    ON job (q, due, seq)              WHERE state = 2;
CREATE INDEX job_active ON job (q, seq)                   WHERE state = 3;
CREATE INDEX job_done   ON job (q, ended, seq)            WHERE state = 4;
CREATE INDEX job_failed ON job (q, ended, seq)            WHERE state = 5;
CREATE INDEX job_parked ON job (q, seq)                   WHERE state = 6;

CREATE TABLE tagset (
    id   int    GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    q    int    NOT NULL,
    tags text[] NOT NULL,
    UNIQUE (q, tags)
);

-- A job before it is placed. due is an instant, delay is counted from stamp (null: from now).
CREATE TYPE spec AS (
    id text, name bytea, data bytea, opts bytea, priority int, lifo boolean, stamp bigint, due bigint, delay bigint,
    max_attempts int, tags text[], on_crash boolean, policy smallint, parent_queue text, parent_id text, dedup text,
    schedule text
);

CREATE TABLE dedup (
    q     int  NOT NULL,
    key   text NOT NULL,
    id    text NOT NULL,
    until bigint,
    next  spec,
    PRIMARY KEY (q, key)
);
CREATE INDEX dedup_until ON dedup (q, until) WHERE until IS NOT NULL;

-- A parent's children, kept as long as the parent: 0 pending, 1 processed, 2 failed, 3 ignored.
CREATE TABLE dep (
    parent bigint   NOT NULL,
    i      int      NOT NULL,
    queue  text     NOT NULL,
    id     text     NOT NULL,
    state  smallint NOT NULL DEFAULT 0,
    reason bytea,
    value  bytea,
    PRIMARY KEY (parent, queue, id)
);

CREATE TABLE log (
    n    bigint NOT NULL,
    i    int    NOT NULL,
    line bytea  NOT NULL,
    PRIMARY KEY (n, i)
);

-- An event: its type, its job, and one or two values whose names its type tells (events.py).
CREATE TYPE told AS (kind text, id text, a bytea, b text);
-- One row for all events of a call: arrays side by side, of which all but ids may be short. The kinds of the hot calls are
-- abbreviated (events.py), and size is how many events those make. The numbers are drawn before the commit: a reader must
-- expect holes that fill.
CREATE TABLE event (
    q     int     NOT NULL,
    n     bigint  NOT NULL,
    size  int     NOT NULL,
    kinds text[]  NOT NULL,
    ids   text[]  NOT NULL,
    a     bytea[],
    b     text[],
    PRIMARY KEY (q, n)
) WITH (autovacuum_vacuum_cost_delay = 0, toast_tuple_target = 8160);

-- Each connection counts in a slot of its own, so that none waits for another; the sum counts.
CREATE TABLE tally (
    q           int    NOT NULL,
    slot        bigint NOT NULL,
    waiting     bigint NOT NULL DEFAULT 0,
    delayed     bigint NOT NULL DEFAULT 0,
    active      bigint NOT NULL DEFAULT 0,
    completed   bigint NOT NULL DEFAULT 0,
    failed      bigint NOT NULL DEFAULT 0,
    parked      bigint NOT NULL DEFAULT 0,
    prioritized bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (q, slot)
) WITH (fillfactor = 50);

CREATE TABLE schedule (
    n      bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    q      int     NOT NULL,
    id     text    NOT NULL,
    slot   bigint  NOT NULL,
    count  int     NOT NULL DEFAULT 0,
    paused boolean NOT NULL DEFAULT false,
    body   text    NOT NULL,
    UNIQUE (q, id)
);
CREATE INDEX schedule_slot ON schedule (q, slot, id);

-- minute is the number of minutes since the epoch; -1 holds the sum since ever, -2 the first minute, -3 how many are kept.
CREATE TABLE metric (
    q      int      NOT NULL,
    kind   smallint NOT NULL,
    minute bigint   NOT NULL,
    slot   int      NOT NULL,
    num    bigint   NOT NULL,
    PRIMARY KEY (q, kind, minute, slot)
) WITH (fillfactor = 50);

CREATE SEQUENCE fence;
CREATE TABLE lock (
    name  text   PRIMARY KEY,
    owner text   NOT NULL,
    fence bigint NOT NULL,
    until bigint NOT NULL
);

CREATE TABLE worker (
    id     text   PRIMARY KEY,
    until  bigint NOT NULL,
    seen   bigint NOT NULL,
    orders text,
    body   text   NOT NULL
);
