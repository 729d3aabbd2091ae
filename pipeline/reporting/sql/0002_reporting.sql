-- Database `reporting`: what dashboards read, and what the reporter itself keeps.
-- Placeholders and common choices: see 0001_ledger.sql.

CREATE DATABASE IF NOT EXISTS reporting ${on_cluster};

-- The closed days' figures, written once when an account's day closes. billing_day is the day that
-- the events were posted in. Impressions and so on count every event with a disposition of its own
-- (charged, over_budget, repeat, counted, not_serving); charged_* count by what was paid for:
-- impressions for cpm, clicks for cpc, engagements (click-throughs among them) for cpe.
CREATE TABLE IF NOT EXISTS reporting.daily ${on_cluster}
(
    billing_day Date,
    account_id String,
    campaign_id String,
    ad_group_id String,
    promoted_pin_id String,
    placement LowCardinality(String),
    country LowCardinality(String),
    device LowCardinality(String),
    currency LowCardinality(String),
    impressions Int64,
    clicks Int64,
    closeups Int64,
    saves Int64,
    installs Int64,
    charged_impressions Int64,
    charged_clicks Int64,
    charged_engagements Int64,
    spend_nanos Int64,
    free_nanos Int64
)
ENGINE = ${merge_tree}
PARTITION BY billing_day
ORDER BY (account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device)
SETTINGS ${exactly_once};

-- Every signal sent to the ad servers. bid_micros and resume_at_ms are 0 where a signal has none.
CREATE TABLE IF NOT EXISTS reporting.signals ${on_cluster}
(
    entity String,
    version Int64,
    action LowCardinality(String) COMMENT 'pause, resume, throttle, bid',
    reason LowCardinality(String),
    serve_probability Float64,
    bid_micros Int64,
    `limit` LowCardinality(String),
    limit_nanos Int64,
    spend_nanos Int64,
    inflight_nanos Int64,
    billing_day Date,
    decided_at_ms Int64,
    resume_at_ms Int64,
    journal_partition UInt16,
    journal_offset Int64,
    INDEX journal_index journal_offset TYPE minmax GRANULARITY 8
)
ENGINE = ${merge_tree}
PARTITION BY toYYYYMM(billing_day)
ORDER BY (entity, version)
SETTINGS ${exactly_once};

-- Every change of the catalog, a row for each field.
CREATE TABLE IF NOT EXISTS reporting.changes ${on_cluster}
(
    entity String,
    field LowCardinality(String),
    `old` String,
    `new` String,
    changed_by String,
    effective_ms Int64,
    catalog_offset Int64,
    change_number UInt32 COMMENT 'Position among the changes of its catalog record'
)
ENGINE = ${merge_tree}
PARTITION BY tuple()
ORDER BY (entity, effective_ms, catalog_offset, change_number)
SETTINGS ${exactly_once};

-- What the reporter knows of accounts: a row when one is first seen, when its terms change, or when
-- an event of an earlier day than known arrives. The first day is the least, the terms the latest.
CREATE TABLE IF NOT EXISTS reporting.accounts ${on_cluster}
(
    account_id String,
    currency LowCardinality(String),
    time_zone LowCardinality(String),
    first_day Date,
    seen_at_ms Int64,
    journal_partition UInt16,
    journal_offset Int64
)
ENGINE = ${merge_tree}
PARTITION BY tuple()
ORDER BY (account_id, seen_at_ms, journal_partition, journal_offset)
SETTINGS ${exactly_once};

-- Which days each shard has closed: all days of the zone up to and including closed_through.
CREATE TABLE IF NOT EXISTS reporting.shard_closes ${on_cluster}
(
    time_zone LowCardinality(String),
    closed_through Date,
    closed_at_ms Int64,
    journal_partition UInt16,
    journal_offset Int64
)
ENGINE = ${merge_tree}
PARTITION BY tuple()
ORDER BY (time_zone, journal_partition, closed_through)
SETTINGS ${exactly_once};

-- The reporter's plans: a row for each log partition and batch, written before the batch's inserts.
-- Batch n covers every partition's offsets from next_offset of batch n - 1 up to its own; all
-- batches but the last are complete. See pipeline/reporting/plans.py.
CREATE TABLE IF NOT EXISTS reporting.reporter_batches ${on_cluster}
(
    batch Int64,
    topic LowCardinality(String),
    log_partition UInt16,
    next_offset Int64 COMMENT 'Offset after the last one read',
    last_offset Int64 COMMENT 'Journal offset of the last record that counts, -1 before the first',
    next_source_offsets Map(String, Int64) COMMENT 'Per event topic: offset after the last judged',
    shard_seq Int64 COMMENT 'Events judged so far',
    digest String COMMENT 'Of the last record that counts, hex',
    skipped Int64 COMMENT 'Records of losing owners so far',
    owner String COMMENT 'The reporter process that wrote the plan'
)
ENGINE = ${merge_tree}
PARTITION BY intDiv(batch, 1000)
ORDER BY (batch, topic, log_partition)
SETTINGS ${exactly_once};
