-- Least privilege, idempotent. Run as an administrator after `pipeline schema`, and again after an
-- upgrade that adds tables or views. Users are made by provision.sh, or by your own directory.

-- Dashboards read `reporting`, finance reads `billing`. What they run is bounded.
CREATE ROLE IF NOT EXISTS dashboards;
GRANT SELECT ON reporting.* TO dashboards;
CREATE ROLE IF NOT EXISTS finance;
GRANT SELECT ON billing.* TO finance;

-- The product's own dashboard shows both.
CREATE ROLE IF NOT EXISTS pins_dashboard;
GRANT SELECT ON reporting.* TO pins_dashboard;
GRANT SELECT ON billing.* TO pins_dashboard;

-- The reporter inserts, and reads what it wrote. It creates, alters and deletes nothing.
CREATE ROLE IF NOT EXISTS reporter;
GRANT SELECT, INSERT ON billing.* TO reporter;
GRANT SELECT, INSERT ON reporting.* TO reporter;

-- `pipeline schema` alone changes tables.
CREATE ROLE IF NOT EXISTS schema_owner;
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP VIEW, ALTER, SELECT, INSERT ON billing.* TO schema_owner;
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP VIEW, ALTER, SELECT, INSERT ON reporting.* TO schema_owner;
GRANT CLUSTER ON *.* TO schema_owner;

CREATE SETTINGS PROFILE IF NOT EXISTS pins_readers SETTINGS
    readonly = 2,
    max_execution_time = 60,
    max_memory_usage = 8000000000,
    max_result_rows = 2000000 TO dashboards, finance, pins_dashboard;

-- An insert is on both replicas before the reporter goes on, and what it reads is the latest: so
-- that it may go on at the other replica. With one replica away it waits; the journal holds.
CREATE SETTINGS PROFILE IF NOT EXISTS pins_reporter SETTINGS
    insert_quorum = 'auto',
    insert_quorum_parallel = 0,
    select_sequential_consistency = 1 TO reporter;

-- Views over `billing` run as a user that nobody can log in as, so that dashboards need no grant
-- on `billing` itself.
CREATE USER IF NOT EXISTS pins_views IDENTIFIED WITH no_password HOST NONE;
GRANT SELECT ON billing.* TO pins_views;
GRANT SELECT ON reporting.* TO pins_views;
ALTER TABLE reporting.dashboard_daily MODIFY SQL SECURITY DEFINER DEFINER = pins_views;
ALTER TABLE reporting.open_days MODIFY SQL SECURITY DEFINER DEFINER = pins_views;
ALTER TABLE reporting.daily_adjusted MODIFY SQL SECURITY DEFINER DEFINER = pins_views;
ALTER TABLE reporting.live_rows MODIFY SQL SECURITY DEFINER DEFINER = pins_views;
ALTER TABLE reporting.live_figures MODIFY SQL SECURITY DEFINER DEFINER = pins_views;
ALTER TABLE reporting.live MODIFY SQL SECURITY DEFINER DEFINER = pins_views;
