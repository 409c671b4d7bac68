-- +goose Up

-- What people used, when, and from what kind of device. No reference to subjects:
-- it would keep their rows while a batch is written, and a submit waits for those.
CREATE TABLE usage_events (
    id       TEXT PRIMARY KEY,
    subject  TEXT NOT NULL,
    at       BIGINT NOT NULL,
    feature  TEXT NOT NULL,   -- one of our own words
    visit_ms BIGINT NOT NULL, -- how long the visit had lasted by then
    details  BYTEA NOT NULL   -- sealed: device, network address, place, screen
);

CREATE INDEX usage_events_by_subject ON usage_events (subject, at);
CREATE INDEX usage_events_by_time ON usage_events (at);
