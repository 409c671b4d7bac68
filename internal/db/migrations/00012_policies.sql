-- +goose Up

-- The versions of the policy that were in force here, so that no process applies
-- the windows of another.
CREATE TABLE policies (
    version        TEXT PRIMARY KEY,
    in_force_since BIGINT NOT NULL, -- the policy's date
    fingerprint    TEXT NOT NULL,   -- SHA-256 of what it says
    published_at   BIGINT NOT NULL
);
