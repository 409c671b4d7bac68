-- +goose Up

-- The durable queue. ref is the id of the row that the work is about; nothing
-- else of the work stands here.
CREATE TABLE jobs (
    id               TEXT PRIMARY KEY,
    lane             TEXT NOT NULL,
    kind             TEXT NOT NULL,
    party            TEXT NOT NULL, -- whose turn it takes: an owner, an endpoint, or system
    ref              TEXT NOT NULL,
    state            TEXT NOT NULL, -- queued, waiting, running, succeeded, failed, canceled
    attempt          INTEGER NOT NULL,
    max_attempts     INTEGER NOT NULL,
    run_after        BIGINT NOT NULL, -- waiting until then
    lease_until      BIGINT NOT NULL, -- running: lost when it passes
    worker           TEXT NOT NULL,
    vstart           BIGINT NOT NULL, -- start tag of fair queueing
    cost             BIGINT NOT NULL,
    cancel_requested INTEGER NOT NULL,
    progress_done    BIGINT NOT NULL,
    progress_total   BIGINT NOT NULL,
    error_code       TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    started_at       BIGINT NOT NULL, -- of the newest attempt; 0: never
    finished_at      BIGINT NOT NULL  -- 0: not yet
);

CREATE INDEX jobs_queued ON jobs (lane, vstart, id) WHERE state = 'queued';
CREATE INDEX jobs_waiting ON jobs (run_after) WHERE state = 'waiting';
CREATE INDEX jobs_running ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_unstarted ON jobs (party) WHERE state IN ('queued', 'waiting');

-- How far each party has got in each lane, in units of cost.
CREATE TABLE job_turns (
    lane   TEXT NOT NULL,
    party  TEXT NOT NULL,
    finish BIGINT NOT NULL,
    PRIMARY KEY (lane, party)
);

CREATE INDEX job_turns_finish ON job_turns (lane, finish);

-- One row for each time a schedule came round: whoever inserts it runs it.
CREATE TABLE schedule_ticks (
    name TEXT NOT NULL,
    tick BIGINT NOT NULL,
    at   BIGINT NOT NULL,
    PRIMARY KEY (name, tick)
);

-- Which workers serve which lanes now; a row not renewed for 15 s is of a dead
-- worker.
CREATE TABLE workers (
    id          TEXT NOT NULL,
    lane        TEXT NOT NULL,
    slots       INTEGER NOT NULL, -- that could run a job now
    unit_micros BIGINT NOT NULL,  -- mean run time for one unit of cost; 0: not measured
    seen_at     BIGINT NOT NULL,
    PRIMARY KEY (id, lane)
);
