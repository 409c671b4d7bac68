#!/bin/bash
# Makes the secrets that compose.yaml mounts, in deploy/secrets, unless they are
# there: what was made once is never replaced, since the root keys and the
# passwords are the only way to what is stored.
#
# Run it as root: the root keys must belong to the user of the containers
# (APP_UID, 65532), who alone may read them.
set -euo pipefail
umask 077

folder=${SECRETS:-$(cd "$(dirname "$0")" && pwd)/secrets}
owner=${APP_UID:-65532}
mkdir -p "$folder"
chmod 0700 "$folder"

# make NAME: writes standard input to the file NAME, unless it is there. The
# folder keeps other users out; within a container every user may read what is
# mounted there.
make() {
  if [ -e "$folder/$1" ]; then
    cat >/dev/null
    return
  fi
  cat >"$folder/.$1"
  chmod 0444 "$folder/.$1"
  mv "$folder/.$1" "$folder/$1"
}

# random N: so many random bytes in hex.
random() { head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

for name in postgres_password zimage_password keys_password redis_password; do
  random 24 | make "$name"
done
random 10 | make s3_access_key # S3 servers allow 20 characters here, and 40 there
random 20 | make s3_secret_key
printf 'postgres://zimage:%s@postgres:5432/zimage?sslmode=disable\n' "$(cat "$folder/zimage_password")" | make database_url
printf 'postgres://keys:%s@postgres:5432/keys?sslmode=disable\n' "$(cat "$folder/keys_password")" | make keys_database_url
printf 'redis://zimage:%s@redis:6379/0\n' "$(cat "$folder/redis_password")" | make redis_url
printf 'user default off\nuser zimage on #%s ~* &* +@all\n' \
  "$(sha256sum <"$folder/redis_password" | cut -d' ' -f1)" | make redis_users

if [ ! -e "$folder/roots" ]; then
  {
    echo '# The root keys of this installation. They wrap every person'"'"'s keys.'
    echo '# Whoever loses this file has lost everything: keep a copy offline, and never'
    echo '# beside the backups of the databases.'
    echo 'current:'
    echo "  id: root_$(random 8)"
    echo "  created: \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\""
    echo "  key: \"$(head -c 32 /dev/urandom | base64)\""
  } >"$folder/.roots"
  chmod 0400 "$folder/.roots"
  chown "$owner" "$folder/.roots"
  mv "$folder/.roots" "$folder/roots"
  echo "New root keys are in $folder/roots. Keep a copy offline: without them nothing stored can be opened."
fi
