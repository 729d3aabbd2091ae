#!/bin/sh
# Random secrets for docker-compose.yml, one a file, where there is none yet.
set -eu
umask 077
where="${1:-secrets}"
mkdir -p "$where"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put() { [ -e "$where/$1" ] || printf '%s' "$2" >"$where/$1"; }
for name in user_hash_key clickhouse_admin reporter_password dashboards_password \
    finance_password dashboard_token grafana_admin; do
    put "$name" "$(random)"
done
put clickhouse_admin_dsn "http://admin:$(cat "$where/clickhouse_admin")@clickhouse-1:8123/"
put reporter_dsn "http://pins_reporter:$(cat "$where/reporter_password")@clickhouse-1:8123/"
put dashboard_dsn "http://pins_dashboard_user:$(cat "$where/dashboards_password")@clickhouse-1:8123/"
# Containers run as other users than the one that made these.
chmod 644 "$where"/*
echo "secrets are in $where; keep user_hash_key for ever: see docs/security.md"
