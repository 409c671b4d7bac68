-- +goose Up

-- Which roots each running process has, so that a rotation wraps nothing with one
-- that somebody lacks. A row not renewed for 30 s is of a dead process.
CREATE TABLE key_rings (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL,   -- of the process: api, worker, scheduler, up
    current  TEXT NOT NULL,   -- root id
    previous TEXT NOT NULL,   -- root id; empty: none
    seen_at  BIGINT NOT NULL
);
