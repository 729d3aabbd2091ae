-- Database `billing`: what finance reads. Every amount is an integer in nanos (1e-9) of `currency`.
--
-- Placeholders are filled by pipeline/reporting/schema.py:
--   ${on_cluster}     empty, or ON CLUSTER 'name'
--   ${merge_tree}     MergeTree, or ReplicatedMergeTree with the server's default path
--   ${exactly_once}   the deduplication window that makes a repeated insert harmless, and fsync
--
-- Choices that hold for all tables:
--   * No column is Nullable: what a row lacks is '' or 0, days that it lacks are 1970-01-01.
--   * Partitions are days (or whole tables), because an insert is atomic within one partition only.
--   * Ids are String, not LowCardinality: an account has thousands of ads, and sorted they compress
--     to a fraction of a byte. Small vocabularies (kind, country, ...) are LowCardinality, not Enum:
--     a new word must not need an ALTER.
--   * journal_partition and journal_offset say which journal record a row comes from: the trace for
--     an auditor, and the high-water mark by which the reporter goes on after a crash.

CREATE DATABASE IF NOT EXISTS billing ${on_cluster};

-- One row for each offset of the three event topics.
-- user_hash is 32 lower-case hex digits or '': readable in every client and export, where
-- FixedString(16) would show raw bytes and could not be empty; ZSTD takes the doubling back.
CREATE TABLE IF NOT EXISTS billing.events ${on_cluster}
(
    posting_day Date COMMENT 'The open day that the event is booked in',
    billing_day Date COMMENT 'Calendar day of event_time_ms in the account''s time zone',
    account_id String,
    campaign_id String,
    ad_group_id String,
    promoted_pin_id String,
    kind LowCardinality(String) COMMENT 'impression, click, closeup, save, install',
    disposition LowCardinality(String) COMMENT 'The one rule that decided the event',
    basis LowCardinality(String) COMMENT 'Of a charged event: cpc, cpe, cpm; else empty',
    `limit` LowCardinality(String) COMMENT 'The limit that stopped or cut the charge',
    currency LowCardinality(String),
    price_micros Int64 COMMENT 'The auction''s clearing price as published',
    amount_nanos Int64,
    free_nanos Int64 COMMENT 'Value delivered and not charged because of a limit',
    placement LowCardinality(String),
    country LowCardinality(String),
    device LowCardinality(String),
    event_time_ms Int64 CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    user_hash String CODEC(ZSTD(1)) COMMENT 'Keyed hash of the Pinner, hex',
    source_topic LowCardinality(String),
    source_partition UInt16,
    source_offset Int64 CODEC(Delta, ZSTD(1)),
    shard_seq Int64 CODEC(Delta, ZSTD(1)) COMMENT 'Order of judgement in the shard, from 0, no gaps',
    decided_at_ms Int64 CODEC(Delta, ZSTD(1)),
    journal_partition UInt16 COMMENT 'The shard',
    journal_offset Int64 CODEC(Delta, ZSTD(1)),
    INDEX event_id_index event_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX ad_group_index ad_group_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX journal_index journal_offset TYPE minmax GRANULARITY 8
)
ENGINE = ${merge_tree}
PARTITION BY posting_day
ORDER BY (account_id, campaign_id, ad_group_id, shard_seq)
SETTINGS ${exactly_once};

-- One row for each posted charge: a click, an engagement, or a block of up to 1,000 impressions.
CREATE TABLE IF NOT EXISTS billing.charges ${on_cluster}
(
    posting_day Date,
    billing_day Date,
    account_id String,
    campaign_id String,
    ad_group_id String,
    promoted_pin_id String COMMENT 'Empty for cpm: a block is of an ad group',
    charge_id String CODEC(ZSTD(1)) COMMENT 'journal_partition-journal_offset-charge_number',
    basis LowCardinality(String) COMMENT 'cpc, cpe, cpm',
    quantity Int64 COMMENT '1, or the impressions of the block',
    currency LowCardinality(String),
    amount_nanos Int64,
    is_adjustment Bool COMMENT 'Posted in a later day, because its own was closed',
    adjusts_day Date COMMENT 'The closed day that it belongs to; 1970-01-01 if no adjustment',
    event_id String CODEC(ZSTD(1)) COMMENT 'Empty for cpm',
    posted_at_ms Int64 CODEC(Delta, ZSTD(1)),
    journal_partition UInt16,
    journal_offset Int64 CODEC(Delta, ZSTD(1)),
    charge_number UInt32 CODEC(Delta, ZSTD(1)) COMMENT 'Position among the charges of its record',
    INDEX charge_id_index charge_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX event_id_index event_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX journal_index journal_offset TYPE minmax GRANULARITY 8
)
ENGINE = ${merge_tree}
PARTITION BY posting_day
ORDER BY (account_id, campaign_id, ad_group_id, journal_partition, journal_offset, charge_number)
SETTINGS ${exactly_once};

-- One row for each closed day of an account, days without events included. Never changes.
-- digest: see pipeline/reporting/digest.py; with this query piped into sha256sum anyone can check it.
CREATE TABLE IF NOT EXISTS billing.day_closes ${on_cluster}
(
    billing_day Date,
    account_id String,
    currency LowCardinality(String),
    amount_nanos Int64,
    charges Int64 COMMENT 'Charges posted in the day',
    events Int64 COMMENT 'Events of the day with a disposition of their own (rules 6 to 10)',
    digest String COMMENT 'SHA-256 of the day''s charges, hex',
    closed_at_ms Int64 COMMENT 'When the last shard closed the day'
)
ENGINE = ${merge_tree}
PARTITION BY toYYYYMM(billing_day)
ORDER BY (account_id, billing_day)
SETTINGS ${exactly_once};

-- One row for each line of an account's monthly statement. Written when a month is stated.
CREATE TABLE IF NOT EXISTS billing.statements ${on_cluster}
(
    month Date COMMENT 'First day of the month',
    account_id String,
    campaign_id String,
    currency LowCardinality(String),
    amount Decimal(38, 2),
    carried_nanos Int64 COMMENT 'Unbilled remainder carried to the next month'
)
ENGINE = ${merge_tree}
PARTITION BY tuple()
ORDER BY (account_id, month, campaign_id)
SETTINGS ${exactly_once};
