-- +goose Up

-- What was erased, by id, for as long as a backup lives that still holds it: it is
-- erased again from a main database that was restored. It stands here because the
-- key store is backed up apart. Room privacy writes it.
CREATE TABLE erasure_journal (
    kind    TEXT NOT NULL,   -- account
    id      TEXT NOT NULL,   -- of a kind account: the subject id
    erasure TEXT NOT NULL,   -- id of the erasure, so that its receipt keeps its name
    secret  BYTEA,           -- SHA-256 of what opens the receipt; NULL: nothing does
    at      BIGINT NOT NULL, -- when it was asked for
    PRIMARY KEY (kind, id)
);

CREATE INDEX erasure_journal_old ON erasure_journal (at);
