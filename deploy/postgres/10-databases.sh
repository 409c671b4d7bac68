#!/bin/bash
# Runs once, on an empty data folder: a role and a database for the service, and
# another pair for the key store. Neither role may connect to the other's. Both
# databases sort text by its bytes: see README.md.
set -euo pipefail

psql --set ON_ERROR_STOP=1 --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\set zimage_password \`cat "${SECRETS:-/run/secrets}/zimage_password"\`
\set keys_password \`cat "${SECRETS:-/run/secrets}/keys_password"\`
CREATE ROLE zimage LOGIN PASSWORD :'zimage_password';
CREATE ROLE keys LOGIN PASSWORD :'keys_password';
CREATE DATABASE zimage OWNER zimage TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C';
CREATE DATABASE keys OWNER keys TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C';
REVOKE CONNECT, TEMPORARY ON DATABASE zimage, keys, postgres FROM PUBLIC;
SQL
