-- +goose Up

-- Archives of all that is kept of a person, made at their wish. The archive lies
-- sealed in the object store, under a key that is made of owner, id and attempts.
CREATE TABLE exports (
    id          TEXT PRIMARY KEY,
    owner       TEXT NOT NULL REFERENCES subjects (id),
    job_id      TEXT NOT NULL,
    status      TEXT NOT NULL,    -- ready or failed; empty: its job's
    error_code  TEXT NOT NULL,    -- empty: none
    attempts    INTEGER NOT NULL, -- made when it ended; of a ready one, the last stored the archive
    bytes       BIGINT NOT NULL,  -- of the archive
    files       BIGINT NOT NULL,  -- in it
    records     BIGINT NOT NULL,  -- in its lists
    checksums   BYTEA,            -- sealed: SHA-256 of the archive and of its manifest; NULL: not ready
    created_at  BIGINT NOT NULL,
    ended_at    BIGINT NOT NULL,  -- ready or failed; 0: not yet
    expires_at  BIGINT NOT NULL,  -- hidden from then on; 0: not ended
    removed_at  BIGINT NOT NULL,  -- hidden since, before its time; 0: not
    unswept     INTEGER NOT NULL  -- 1: attempts that do not count may have left something
);

-- One at a time.
CREATE UNIQUE INDEX exports_open ON exports (owner) WHERE status = '' AND removed_at = 0;
CREATE INDEX exports_by_owner ON exports (owner, id);
CREATE INDEX exports_expiring ON exports (expires_at) WHERE expires_at > 0;
CREATE INDEX exports_unneeded ON exports (id) WHERE unswept = 1 OR removed_at > 0;
