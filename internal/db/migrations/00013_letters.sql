-- +goose Up

-- A deadline counts from the day on which a letter came, however late it is opened.
ALTER TABLE requests ADD COLUMN received_at BIGINT NOT NULL DEFAULT 0;

UPDATE requests SET received_at = opened_at;

-- What a letter asks for and cannot be undone waits, so that the account's owner
-- can object.
ALTER TABLE requests ADD COLUMN acts_at BIGINT NOT NULL DEFAULT 0; -- 0: it did not wait

CREATE INDEX requests_waiting ON requests (acts_at) WHERE acts_at > 0;
