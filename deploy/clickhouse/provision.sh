#!/bin/sh
# Roles, and a user for each, with the passwords that the secrets hold.
set -eu
admin="$(cat /run/secrets/clickhouse_admin)"
run() { clickhouse-client --host "$CLICKHOUSE_HOST" --user admin --password "$admin" "$@"; }
run --multiquery </roles.sql
user() {
    password="$(cat "/run/secrets/$3")"
    run --query "CREATE USER IF NOT EXISTS $1 IDENTIFIED WITH sha256_password BY '$password'"
    run --query "ALTER USER $1 IDENTIFIED WITH sha256_password BY '$password'"
    run --query "GRANT $2 TO $1"
}
user pins_reporter reporter reporter_password
user pins_dashboard_user pins_dashboard dashboards_password
user grafana dashboards dashboards_password
user finance_user finance finance_password
