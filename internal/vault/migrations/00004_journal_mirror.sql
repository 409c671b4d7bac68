-- +goose Up

-- The object store has every line of the journal too, for when both databases are
-- restored from before it.
ALTER TABLE erasure_journal ADD COLUMN mirror TEXT NOT NULL DEFAULT ''; -- the object; empty: not there yet

CREATE INDEX erasure_journal_mirror ON erasure_journal (mirror);
