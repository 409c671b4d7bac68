-- +goose Up
-- How old the oldest content is, and which ended first, must not cost a look at all
-- of it.
CREATE INDEX generations_oldest ON generations (created_at) WHERE request IS NOT NULL;
CREATE INDEX generations_ending ON generations (expires_at) WHERE request IS NOT NULL;
CREATE INDEX images_oldest ON images (created_at) WHERE sha256 IS NOT NULL;
CREATE INDEX images_ending ON images (expires_at) WHERE sha256 IS NOT NULL;
