-- +goose Up

-- What staff did stands in the ledger from now on. No version was released that
-- wrote this table.
DROP TABLE staff_actions;

-- What the service must be able to prove that it did, in the order of sequence,
-- and by nothing but a salted commitment to the details: no text, nobody's id.
CREATE TABLE ledger_entries (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    at         BIGINT NOT NULL,
    commitment BYTEA NOT NULL, -- SHA-256 over id, kind, at, salt and details
    sequence   BIGINT UNIQUE   -- from 1, without gaps; NULL: in no batch yet
);

CREATE INDEX ledger_entries_unsealed ON ledger_entries (id) WHERE sequence IS NULL;

-- The details of entries, which an erasure takes away: the chain stays valid.
CREATE TABLE ledger_details (
    entry_id TEXT PRIMARY KEY,
    subject  TEXT NOT NULL,    -- whom it is about; empty: nobody
    hidden   INTEGER NOT NULL, -- 1: the person must not be told
    details  BYTEA NOT NULL    -- salt and JSON, sealed with the subject's key; plain when about nobody
);

CREATE INDEX ledger_details_by_subject ON ledger_details (subject, entry_id);

-- Entries are chained in batches. Each hash is over the one before it, the
-- batch's own numbers and every field of its entries.
CREATE TABLE ledger_batches (
    number    BIGINT PRIMARY KEY, -- from 1
    first     BIGINT NOT NULL,    -- sequence of its first entry
    entries   BIGINT NOT NULL,    -- how many
    at        BIGINT NOT NULL,
    hash      BYTEA NOT NULL,
    signature BYTEA NOT NULL      -- Ed25519, with the installation's key
);
