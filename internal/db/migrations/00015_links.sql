-- +goose Up

-- Signed links are kept nowhere. Each carries the epoch of its owner, and opens
-- nothing once this is another one.
CREATE TABLE link_epochs (
    owner     TEXT PRIMARY KEY,
    epoch     BIGINT NOT NULL, -- how often they were revoked
    raised_at BIGINT NOT NULL
);
