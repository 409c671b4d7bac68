-- +goose Up

-- Where a person's programs want to be told. One row a person, with once = 1 and
-- without an address, stands for all addresses that were given for one generation
-- each: its secret signs what goes there.
CREATE TABLE webhook_endpoints (
    id             TEXT PRIMARY KEY,
    owner          TEXT NOT NULL,
    once           INTEGER NOT NULL,
    url            BYTEA,          -- sealed; NULL: once
    description    BYTEA,          -- sealed; NULL: none
    secret         BYTEA NOT NULL, -- sealed
    old_secret     BYTEA,          -- sealed; NULL: none that still signs
    old_until      BIGINT,         -- until when it signs too
    events         TEXT NOT NULL,  -- separated by spaces; empty: all
    include_prompt INTEGER NOT NULL,
    created_at     BIGINT NOT NULL,
    changed_at     BIGINT NOT NULL,
    disabled_at    BIGINT,         -- NULL: it is not
    disabled_why   TEXT NOT NULL,  -- user, gone, failing
    failures       BIGINT NOT NULL, -- in a row
    failing_since  BIGINT,         -- NULL: the last attempt succeeded
    open_until     BIGINT          -- nothing is sent until then; NULL: no circuit is open
);

CREATE INDEX webhook_endpoints_by_owner ON webhook_endpoints (owner, id);
CREATE UNIQUE INDEX webhook_endpoints_once ON webhook_endpoints (owner) WHERE once = 1;
CREATE INDEX webhook_endpoints_rotated ON webhook_endpoints (old_until) WHERE old_until IS NOT NULL;

-- Addresses that were given with one generation.
CREATE TABLE webhook_once (
    id         TEXT PRIMARY KEY, -- of the generation
    owner      TEXT NOT NULL,
    url        BYTEA NOT NULL,   -- sealed
    events     TEXT NOT NULL,    -- separated by spaces; empty: all of a generation
    created_at BIGINT NOT NULL
);

CREATE INDEX webhook_once_by_owner ON webhook_once (owner);
CREATE INDEX webhook_once_old ON webhook_once (created_at);

-- What happened, of people who have an endpoint.
CREATE TABLE webhook_events (
    id       TEXT PRIMARY KEY,
    owner    TEXT NOT NULL,
    type     TEXT NOT NULL,
    ref      TEXT NOT NULL, -- generation, image, export, endpoint
    whole    TEXT NOT NULL, -- generation of an image; empty: none
    sequence BIGINT NOT NULL, -- within the generation; 0: none
    reason   TEXT NOT NULL, -- of a deletion: user, expired
    at       BIGINT NOT NULL
);

CREATE INDEX webhook_events_by_owner ON webhook_events (owner, id);
CREATE INDEX webhook_events_old ON webhook_events (at);

-- Which event is to be told, or was told, to which endpoint.
CREATE TABLE webhook_deliveries (
    id         TEXT PRIMARY KEY,
    owner      TEXT NOT NULL,
    endpoint   TEXT NOT NULL,
    event      TEXT NOT NULL,
    job_id     TEXT NOT NULL,
    state      TEXT NOT NULL,    -- pending, paused, delivered, failed
    tries      BIGINT NOT NULL,  -- since it was last begun
    attempts   BIGINT NOT NULL,  -- in all
    error      TEXT NOT NULL,    -- why it failed; empty: it has not
    created_at BIGINT NOT NULL,
    ended_at   BIGINT            -- NULL: not
);

CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint, id);
CREATE INDEX webhook_deliveries_by_owner ON webhook_deliveries (owner);
CREATE INDEX webhook_deliveries_paused ON webhook_deliveries (owner, id) WHERE state = 'paused';
CREATE INDEX webhook_deliveries_old ON webhook_deliveries (created_at);

-- What came of each attempt.
CREATE TABLE webhook_attempts (
    delivery TEXT NOT NULL,
    n        BIGINT NOT NULL,
    owner    TEXT NOT NULL,
    at       BIGINT NOT NULL,
    took     BIGINT NOT NULL, -- milliseconds
    status   BIGINT NOT NULL, -- of the answer; 0: none came
    error    TEXT NOT NULL,   -- code; empty: it succeeded
    PRIMARY KEY (delivery, n)
);

CREATE INDEX webhook_attempts_by_owner ON webhook_attempts (owner);
CREATE INDEX webhook_attempts_old ON webhook_attempts (at);
