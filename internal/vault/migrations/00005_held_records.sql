-- +goose Up

-- What a hold keeps of an erased person, beside the key that it is sealed with, so
-- that a main database restored from before the erasure has it again. Room privacy
-- writes it.
CREATE TABLE held_records (
    id      TEXT PRIMARY KEY, -- of the exception, and of its key
    subject TEXT NOT NULL,
    record  BYTEA NOT NULL    -- the row, its exception and its holds; sealed with the exception's key
);

CREATE INDEX held_records_by_subject ON held_records (subject);
