-- +goose Up

-- Whose work a job is. Its party is mostly the same, but for webhooks the endpoint.
ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';

UPDATE jobs SET owner = coalesce((SELECT e.owner FROM webhook_endpoints e WHERE e.id = jobs.party), party);

-- Until when what its owner asked for, replays and tests, is charged.
ALTER TABLE webhook_endpoints ADD COLUMN asked_until BIGINT NOT NULL DEFAULT 0;

-- Hosts of addresses that were given for one generation each, from a failure until
-- something arrives: what is dead is left alone.
CREATE TABLE webhook_hosts (
    id            TEXT PRIMARY KEY, -- keyed hash of owner and host
    owner         TEXT NOT NULL,
    failures      BIGINT NOT NULL,  -- in a row
    failing_since BIGINT NOT NULL,
    open_until    BIGINT            -- nothing is sent until then; NULL: no circuit is open
);

CREATE INDEX webhook_hosts_by_owner ON webhook_hosts (owner);
CREATE INDEX webhook_hosts_old ON webhook_hosts (failing_since);

-- That an image will be deleted by itself is told once.
CREATE UNIQUE INDEX webhook_events_expiring ON webhook_events (ref) WHERE type = 'image.expiring';
