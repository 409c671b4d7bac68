-- +goose Up

-- A restriction (asked for by the person) and a suspension (by the operator) may
-- stand side by side, so they are times of their own; the state is only how far
-- the account lives: active, closing, erased.
ALTER TABLE subjects ADD COLUMN restricted_at BIGINT; -- NULL: not restricted
ALTER TABLE subjects ADD COLUMN suspended_at BIGINT;  -- NULL: not suspended
UPDATE subjects SET restricted_at = changed_at, state = 'active' WHERE state = 'restricted';
UPDATE subjects SET suspended_at = changed_at, state = 'active' WHERE state = 'suspended';

-- What a person agreed to and took back, every time anew: the newest row of a
-- purpose counts.
CREATE TABLE consents (
    id             TEXT PRIMARY KEY,
    subject        TEXT NOT NULL REFERENCES subjects (id),
    purpose        TEXT NOT NULL,
    granted        INTEGER NOT NULL, -- 1: given, 0: withdrawn
    policy_version TEXT NOT NULL,    -- the words that were agreed to
    at             BIGINT NOT NULL
);

CREATE INDEX consents_by_purpose ON consents (subject, purpose, id);

-- Uses that rest on legitimate interests and that a person objects to.
CREATE TABLE objections (
    subject TEXT NOT NULL REFERENCES subjects (id),
    purpose TEXT NOT NULL,
    at      BIGINT NOT NULL,
    PRIMARY KEY (subject, purpose)
);

-- Finds keys that ended long ago.
CREATE INDEX api_keys_revoked ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX api_keys_expiring ON api_keys (expires_at) WHERE expires_at IS NOT NULL;

ALTER TABLE users ADD COLUMN username_lookup TEXT; -- of the name's skeleton; NULL: none
ALTER TABLE users ADD COLUMN username BYTEA;       -- sealed
ALTER TABLE users ADD COLUMN profile BYTEA;        -- sealed; NULL: empty
ALTER TABLE users ADD COLUMN preferences BYTEA;    -- sealed; NULL: none
ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT ''; -- support, privacy, operator; empty: no staff
ALTER TABLE users ADD COLUMN totp_secret BYTEA;    -- sealed; NULL: none
ALTER TABLE users ADD COLUMN totp_confirmed_at BIGINT; -- NULL: not in force
ALTER TABLE users ADD COLUMN totp_step BIGINT NOT NULL DEFAULT 0; -- the newest 30 s step whose code was used

CREATE UNIQUE INDEX users_by_username ON users (username_lookup);
CREATE INDEX users_staff ON users (role) WHERE role <> '';

-- Sign-ups whose address nobody has confirmed. An account is made only by the
-- link in the mail together with the password that was chosen: whoever signs up
-- with somebody else's address gets nothing and takes nothing away.
CREATE TABLE signups (
    id              TEXT PRIMARY KEY, -- the subject it becomes; its keyset exists
    email_lookup    TEXT NOT NULL,
    email           BYTEA NOT NULL,   -- sealed
    username_lookup TEXT NOT NULL,
    username        BYTEA NOT NULL,   -- sealed
    profile         BYTEA,            -- sealed
    password        TEXT NOT NULL,    -- Argon2id
    consents        TEXT NOT NULL,    -- purposes agreed to, separated by spaces
    policy_version  TEXT NOT NULL,
    token_lookup    TEXT NOT NULL UNIQUE,
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL
);

CREATE INDEX signups_expiring ON signups (expires_at);
CREATE INDEX signups_by_email ON signups (email_lookup);

-- Links that were mailed: each works once and until it expires.
CREATE TABLE mailed_links (
    id           TEXT PRIMARY KEY,
    owner        TEXT NOT NULL REFERENCES users (id),
    kind         TEXT NOT NULL, -- email: a new address confirms; password: a reset
    token_lookup TEXT NOT NULL UNIQUE,
    email_lookup TEXT NOT NULL, -- of the new address; empty: none
    email        BYTEA,         -- sealed; NULL: none
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    used_at      BIGINT         -- NULL: not yet
);

CREATE INDEX mailed_links_by_owner ON mailed_links (owner, kind);
CREATE INDEX mailed_links_expiring ON mailed_links (expires_at);

-- Browsers that are or were signed in. After a sign-out the row stays, with a
-- new token that opens nothing: it only knows the device again.
CREATE TABLE sessions (
    id           TEXT PRIMARY KEY,
    owner        TEXT NOT NULL REFERENCES users (id),
    token_lookup TEXT NOT NULL UNIQUE,
    method       TEXT NOT NULL,   -- how it was opened: password, password+totp, password+recovery, password+passkey, passkey
    agent        BYTEA,           -- sealed: what the browser calls itself
    place        BYTEA,           -- sealed: approximate; NULL: not known
    created_at   BIGINT NOT NULL, -- of this sign-in
    fresh_at     BIGINT NOT NULL, -- when the person last proved who they are
    last_used_at BIGINT NOT NULL, -- to the minute
    expires_at   BIGINT NOT NULL, -- absolute
    ended_at     BIGINT           -- NULL: signed in
);

CREATE INDEX sessions_by_owner ON sessions (owner, id);
CREATE INDEX sessions_unused ON sessions (last_used_at);

-- One-time codes for who has lost the second factor.
CREATE TABLE recovery_codes (
    owner       TEXT NOT NULL REFERENCES users (id),
    code_lookup TEXT NOT NULL,
    used_at     BIGINT,          -- NULL: not yet
    PRIMARY KEY (owner, code_lookup)
);

CREATE TABLE passkeys (
    id                TEXT PRIMARY KEY,
    owner             TEXT NOT NULL REFERENCES users (id),
    credential_lookup TEXT NOT NULL UNIQUE,
    credential        BYTEA NOT NULL, -- sealed: public key, flags and counter
    name              BYTEA NOT NULL, -- sealed
    created_at        BIGINT NOT NULL,
    last_used_at      BIGINT          -- NULL: never
);

CREATE INDEX passkeys_by_owner ON passkeys (owner, id);

-- Challenges that a passkey is to sign. They are random and name nobody but, for
-- a registration or a second factor, the subject.
CREATE TABLE passkey_challenges (
    id         TEXT PRIMARY KEY,
    owner      TEXT NOT NULL, -- empty: whoever signs in
    purpose    TEXT NOT NULL, -- register, sign-in, second-factor
    challenge  TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX passkey_challenges_expiring ON passkey_challenges (expires_at);

-- How often something was tried, as the theoretical arrival time of the next
-- attempt (GCRA). What it is about stands here only as a keyed hash.
CREATE TABLE throttles (
    bucket  TEXT PRIMARY KEY,
    arrival BIGINT NOT NULL
);

CREATE INDEX throttles_past ON throttles (arrival);

-- What staff did with somebody's account, and why. The reason is sealed with the
-- key of the person it is about.
CREATE TABLE staff_actions (
    id      TEXT PRIMARY KEY,
    staff   TEXT NOT NULL, -- subject id; cli: the operator at the machine
    subject TEXT NOT NULL,
    action  TEXT NOT NULL,
    reason  BYTEA NOT NULL, -- sealed
    at      BIGINT NOT NULL
);

CREATE INDEX staff_actions_by_subject ON staff_actions (subject, id);

-- Mail to be sent. Address and data are NULL once the server has accepted it;
-- the row stays for a while, so that nothing is sent twice.
CREATE TABLE mails (
    id          TEXT PRIMARY KEY, -- also the left side of its Message-ID
    subject     TEXT NOT NULL,
    template    TEXT NOT NULL,
    address     BYTEA,            -- sealed
    data        BYTEA,            -- sealed JSON for the template
    created_at  BIGINT NOT NULL,
    accepted_at BIGINT,           -- NULL: not yet
    failed_at   BIGINT,           -- NULL: not given up
    CHECK (accepted_at IS NULL OR (address IS NULL AND data IS NULL))
);

CREATE INDEX mails_by_subject ON mails (subject, id);
CREATE INDEX mails_ended ON mails (created_at) WHERE accepted_at IS NOT NULL OR failed_at IS NOT NULL;
