-- +goose Up

-- Signed links are kept nowhere. Each carries the epoch of its owner, and opens
-- nothing once this is another one.
CREATE TABLE link_epochs (
    owner     TEXT PRIMARY KEY,
    epoch     BIGINT NOT NULL, -- how often they were revoked
    raised_at BIGINT NOT NULL
);

-- Pictures that their owners show to whoever has a link. Ending one deletes its row.
CREATE TABLE shares (
    id           TEXT PRIMARY KEY,
    owner        TEXT NOT NULL,
    image_id     TEXT NOT NULL,
    token_lookup TEXT NOT NULL, -- a keyed hash; the token itself is kept nowhere
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL
);

CREATE UNIQUE INDEX shares_by_token ON shares (token_lookup);
CREATE INDEX shares_by_owner ON shares (owner, id);
CREATE INDEX shares_expiring ON shares (expires_at);
