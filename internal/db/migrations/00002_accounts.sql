-- +goose Up

-- Every person, as the rest of the database refers to them. The id is random,
-- never used again, and stays when everything else is erased.
CREATE TABLE subjects (
    id         TEXT PRIMARY KEY,
    state      TEXT NOT NULL, -- active, restricted, suspended, closing, erased
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL -- of the state
);

CREATE INDEX subjects_unusual ON subjects (state) WHERE state <> 'active';

-- Records that must not be deleted for now, one by one. Several holds may cover
-- the same record, and it is free when all are released.
CREATE TABLE holds (
    id          TEXT PRIMARY KEY,
    subject     TEXT NOT NULL, -- whose record it is
    table_name  TEXT NOT NULL,
    row_id      TEXT NOT NULL,
    reason_ref  TEXT NOT NULL, -- the case, by its reference alone
    created_at  BIGINT NOT NULL,
    released_at BIGINT         -- NULL while it holds
);

CREATE INDEX holds_by_record ON holds (table_name, row_id) WHERE released_at IS NULL;
CREATE INDEX holds_by_subject ON holds (subject);

-- Accounts. The mail address stands here twice: hashed with the installation's
-- key, to find it by, and sealed with the person's, to write to.
CREATE TABLE users (
    id           TEXT PRIMARY KEY REFERENCES subjects (id),
    email_lookup TEXT NOT NULL UNIQUE,
    email        BYTEA NOT NULL, -- sealed
    password     TEXT NOT NULL,  -- Argon2id, with its parameters and salt
    created_at   BIGINT NOT NULL
);

-- API keys. The token itself is nowhere: only its hash under the installation's
-- key, and its first letters so that people tell their keys apart.
CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    owner        TEXT NOT NULL REFERENCES users (id),
    token_lookup TEXT NOT NULL UNIQUE,
    prefix       TEXT NOT NULL,
    name         BYTEA NOT NULL, -- sealed
    scopes       TEXT NOT NULL,  -- separated by spaces
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT,         -- NULL: never
    revoked_at   BIGINT,         -- NULL: not
    last_used_at BIGINT          -- to the minute, NULL: never
);

CREATE INDEX api_keys_by_owner ON api_keys (owner, id);
