-- +goose Up

-- One row a person: both keysets, wrapped by a root and bound to this subject.
-- After destruction the blobs are NULL and the row stays, so that no key is ever
-- made again for the same subject.
CREATE TABLE keysets (
    subject      TEXT PRIMARY KEY,
    field        BYTEA,                     -- wrapped keyset for fields
    object       BYTEA,                     -- wrapped keyset for objects
    root_id      TEXT NOT NULL,             -- the root that wraps both; empty once destroyed
    created_at   BIGINT NOT NULL,
    destroyed_at BIGINT,
    CHECK ((destroyed_at IS NULL) = (field IS NOT NULL AND object IS NOT NULL)),
    CHECK (destroyed_at IS NULL OR (field IS NULL AND object IS NULL))
);

-- Finds what a rotation still has to wrap again, and roots that are missing.
CREATE INDEX keysets_by_root ON keysets (root_id, subject);

-- Keys of the installation itself, such as the one for lookups.
CREATE TABLE installation_keys (
    name    TEXT PRIMARY KEY,
    wrapped BYTEA NOT NULL,
    root_id TEXT NOT NULL
);
