-- +goose Up

-- Until when what its owner asked for, replays and tests, is charged.
ALTER TABLE webhook_endpoints ADD COLUMN asked_until BIGINT NOT NULL DEFAULT 0;
