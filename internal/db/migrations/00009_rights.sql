-- +goose Up

-- A hold is looked at again at most 90 days after it was placed or renewed.
ALTER TABLE holds ADD COLUMN review_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE holds ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0; -- 1: the case forbids to tell the person
UPDATE holds SET review_at = created_at + 7776000000;

CREATE INDEX holds_by_review ON holds (review_at) WHERE released_at IS NULL;

-- From here on only what the erasure has kept may be held: the key is about to go.
ALTER TABLE erasures ADD COLUMN shut_at BIGINT NOT NULL DEFAULT 0; -- 0: not yet

-- Its last hold is released: it is being deleted, and nothing holds it again.
ALTER TABLE erasure_exceptions ADD COLUMN freed_at BIGINT NOT NULL DEFAULT 0; -- 0: not

ALTER TABLE users ADD COLUMN do_not_sell_at BIGINT; -- NULL: not said

-- What people asked for by their rights, whichever way it came.
CREATE TABLE requests (
    id             TEXT PRIMARY KEY,
    subject        TEXT NOT NULL,   -- whose; its own id while no account is known to be the address's
    kind           TEXT NOT NULL,   -- access, export, erasure, rectification, restriction, objection, do_not_sell
    state          TEXT NOT NULL,   -- unconfirmed, open, closed
    origin         TEXT NOT NULL,   -- self, staff: by staff for the account; address: by staff for an address
    ref            TEXT NOT NULL,   -- the export, erasure or purpose; empty: none
    outcome        TEXT NOT NULL,   -- done, nothing_held, refused, withdrawn, unconfirmed; empty: not closed
    address        BYTEA,           -- sealed; NULL: the account's, or forgotten
    address_lookup TEXT,            -- so that one is open at a time
    note           BYTEA,           -- sealed; NULL: none, or forgotten
    token_lookup   TEXT UNIQUE,     -- of the mailed code; NULL: used, or none
    opened_at      BIGINT NOT NULL,
    due_at         BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL, -- of the code; 0: none
    closed_at      BIGINT NOT NULL  -- 0: not yet
);

CREATE INDEX requests_by_subject ON requests (subject, id);
CREATE INDEX requests_open ON requests (due_at) WHERE state <> 'closed';
CREATE INDEX requests_by_address ON requests (address_lookup) WHERE address_lookup IS NOT NULL;
CREATE INDEX requests_closed ON requests (closed_at) WHERE state = 'closed';
