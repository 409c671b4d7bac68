-- +goose Up

-- Whether a delivery waits to try an endpoint that is left alone once open_until is over.
ALTER TABLE webhook_endpoints ADD COLUMN tried INTEGER NOT NULL DEFAULT 0;
