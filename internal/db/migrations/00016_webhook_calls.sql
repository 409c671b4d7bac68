-- +goose Up

-- Whose work a job is. Its party is mostly the same, but for webhooks the endpoint.
ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';

UPDATE jobs SET owner = coalesce((SELECT e.owner FROM webhook_endpoints e WHERE e.id = jobs.party), party);

-- Until when what its owner asked for, replays and tests, is charged.
ALTER TABLE webhook_endpoints ADD COLUMN asked_until BIGINT NOT NULL DEFAULT 0;
