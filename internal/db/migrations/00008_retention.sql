-- +goose Up

-- Retention finds what is due by the time that decides; a sweep must not read what
-- stays.
CREATE INDEX images_expiring ON images (expires_at) WHERE removed_at = 0;
CREATE INDEX mails_accepted ON mails (accepted_at) WHERE accepted_at IS NOT NULL;
CREATE INDEX mails_failed ON mails (failed_at) WHERE failed_at IS NOT NULL;
DROP INDEX mails_ended;

-- And what is kept for longer than a policy allows that was shortened.
CREATE INDEX generations_span ON generations ((expires_at - created_at)) WHERE removed_at = 0;
CREATE INDEX images_span ON images ((expires_at - created_at)) WHERE removed_at = 0;

-- The comparison with the object store goes through the pictures in the order of
-- their keys.
CREATE INDEX images_by_key ON images (owner, generation_id) WHERE removed_at = 0;

-- When each plan of retention was last gone through to its end, and what came of it.
CREATE TABLE sweeps (
    plan     TEXT PRIMARY KEY, -- a table, or objects
    ended_at BIGINT NOT NULL,
    result   TEXT NOT NULL     -- JSON: numbers alone
);
