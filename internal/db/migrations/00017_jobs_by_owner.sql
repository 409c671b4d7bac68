-- +goose Up

-- An erasure, again and again until a person's work has ended, and a copy of their data
-- ask for what is theirs among all that is in the queue.
CREATE INDEX jobs_by_owner ON jobs (owner);
