-- +goose Up

-- What people asked for. Once removed, a row is a tombstone: request, seed and
-- model are gone, ids and times stay for 30 days.
CREATE TABLE generations (
    id             TEXT PRIMARY KEY,
    owner          TEXT NOT NULL,
    job_id         TEXT NOT NULL,
    model          TEXT NOT NULL,
    seed           BIGINT NOT NULL,
    request        BYTEA,            -- the request as it runs, sealed with the owner's key
    status         TEXT NOT NULL,    -- empty until it has ended: then the job's state tells
    error_code     TEXT NOT NULL,
    attempts       INTEGER NOT NULL, -- that it took; 0: not ended yet
    created_at     BIGINT NOT NULL,
    started_at     BIGINT NOT NULL,
    finished_at    BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    removed_at     BIGINT NOT NULL,  -- 0: it is there
    removed_reason TEXT NOT NULL,    -- user or expired
    unswept        INTEGER NOT NULL  -- 1: objects may be left that nobody needs
);

CREATE INDEX generations_owner ON generations (owner, id);
CREATE INDEX generations_expiring ON generations (expires_at) WHERE removed_at = 0;
CREATE INDEX generations_removed ON generations (removed_at) WHERE removed_at > 0;
CREATE INDEX generations_unswept ON generations (owner, id) WHERE unswept = 1;

-- The pictures. The object's key is made of owner, generation, attempt and n.
CREATE TABLE images (
    id             TEXT PRIMARY KEY,
    generation_id  TEXT NOT NULL,
    owner          TEXT NOT NULL,
    n              INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    width          INTEGER NOT NULL,
    height         INTEGER NOT NULL,
    format         TEXT NOT NULL,
    bytes          BIGINT NOT NULL,
    seed           BIGINT NOT NULL,
    sha256         BYTEA,            -- of the picture, sealed with the owner's key
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    removed_at     BIGINT NOT NULL,
    removed_reason TEXT NOT NULL
);

CREATE UNIQUE INDEX images_of_generation ON images (generation_id, n);
CREATE INDEX images_owner ON images (owner, id);
CREATE INDEX images_removed ON images (removed_at) WHERE removed_at > 0;

-- Which generation a client's Idempotency-Key made, for 24 hours. Both hashes
-- are keyed; the answer itself is not kept.
CREATE TABLE idempotency_keys (
    owner         TEXT NOT NULL,
    key_lookup    TEXT NOT NULL,
    body_lookup   TEXT NOT NULL,
    generation_id TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (owner, key_lookup)
);

CREATE INDEX idempotency_keys_old ON idempotency_keys (created_at);

-- What workers say of their engines.
CREATE TABLE engines (
    worker     TEXT NOT NULL,
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    lane       TEXT NOT NULL,
    state      TEXT NOT NULL, -- ready, draining or set_aside
    slots      INTEGER NOT NULL,
    busy       INTEGER NOT NULL,
    failures   INTEGER NOT NULL, -- in a row
    error_code TEXT NOT NULL,
    seen_at    BIGINT NOT NULL,
    PRIMARY KEY (worker, name)
);

-- Engines that the operator wants to rest, by name.
CREATE TABLE drained_engines (
    name TEXT PRIMARY KEY,
    at   BIGINT NOT NULL
);
