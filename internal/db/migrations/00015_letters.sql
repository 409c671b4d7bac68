-- +goose Up

-- A deadline counts from the day on which a letter came, however late it is opened.
ALTER TABLE requests ADD COLUMN received_at BIGINT NOT NULL DEFAULT 0;

UPDATE requests SET received_at = opened_at;
