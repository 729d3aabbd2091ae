-- Corrections, and what finance sees of adjustments.
-- Placeholders and common choices: see 0001_ledger.sql.

-- One row for each credit that the journal orders: the money of one charged event, given back.
-- A credit stands on the same side as the events: over any closed posting day of an account
--   sum(billing.events.amount_nanos) + sum(billing.credits.amount_nanos)
--   = sum(billing.charges.amount_nanos) = sum(reporting.daily.spend_nanos) = day_closes.amount_nanos
-- and on a day without credits the first sum alone. A credit is posted only where it equals, to the
-- nano, what billing.events says the event was charged; any other is refused: it has amount 0, says
-- why, and has no charge.
CREATE TABLE IF NOT EXISTS billing.credits ${on_cluster}
(
    posting_day Date COMMENT 'The open day that the credit is booked in',
    billing_day Date COMMENT 'Billing day of the event',
    account_id String,
    campaign_id String,
    ad_group_id String,
    promoted_pin_id String,
    event_id String CODEC(ZSTD(1)),
    charge_id String CODEC(ZSTD(1)) COMMENT 'Of its row in billing.charges; empty if refused',
    basis LowCardinality(String) COMMENT 'What the event was charged by: cpc, cpe, cpm',
    currency LowCardinality(String),
    amount_nanos Int64 COMMENT 'Negative; 0 if refused',
    asked_nanos Int64 COMMENT 'What was asked to be given back, positive',
    refused String COMMENT 'Why nothing was posted; else empty',
    placement LowCardinality(String),
    country LowCardinality(String),
    device LowCardinality(String),
    charged_day Date COMMENT 'Posting day of the event',
    reason String,
    credited_by String,
    posted_at_ms Int64,
    journal_partition UInt16,
    journal_offset Int64,
    charge_number UInt32,
    INDEX event_id_index event_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ${merge_tree}
PARTITION BY posting_day
ORDER BY (account_id, campaign_id, ad_group_id, journal_partition, journal_offset, charge_number)
SETTINGS ${exactly_once};

-- spend_nanos is what was posted, so it has credits taken off; before them it is
-- spend_nanos - credit_nanos.
ALTER TABLE reporting.daily ${on_cluster}
    ADD COLUMN IF NOT EXISTS credit_nanos Int64 DEFAULT 0
    COMMENT 'Credits posted in the day, negative, a part of spend_nanos';

-- Every charge that belongs to an earlier, closed day than the one it is posted in: late events
-- (cause late_event) and credits (cause credit, negative).
CREATE OR REPLACE VIEW billing.adjustments ${on_cluster} AS
SELECT
    posting_day, adjusts_day, 'late_event' AS cause, account_id, campaign_id, ad_group_id,
    promoted_pin_id, event_id, charge_id, basis, quantity, currency, amount_nanos,
    '' AS reason, '' AS credited_by, posted_at_ms
FROM billing.charges
WHERE is_adjustment AND amount_nanos >= 0
UNION ALL
SELECT
    posting_day, billing_day AS adjusts_day, 'credit' AS cause, account_id, campaign_id, ad_group_id,
    promoted_pin_id, event_id, charge_id, basis, toInt64(-1) AS quantity, currency, amount_nanos,
    reason, credited_by, posted_at_ms
FROM billing.credits
WHERE refused = '' AND posting_day != billing_day;

-- Closed days as they were closed, beside what was posted for them in later days.
--   spend_nanos                as closed, everything posted in the day
--   for_earlier_days_nanos     the part of it that adjusts earlier days
--   late_nanos                 posted in later days for late events of this one
--   credited_nanos             given back in later days for events of this one, negative
--   adjusted_spend_nanos       spend of the events of the day:
--                              spend - for_earlier_days + late + credited
-- Adjusted spend sums over all days to what spend does, but for what open days hold.
CREATE OR REPLACE VIEW reporting.daily_adjusted ${on_cluster} AS
SELECT
    billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device,
    currency,
    sum(seen) AS impressions,
    sum(clicked) AS clicks,
    sum(spend) AS spend_nanos,
    sum(free) AS free_nanos,
    sum(earlier) AS for_earlier_days_nanos,
    sum(late) AS late_nanos,
    sum(credited) AS credited_nanos,
    spend_nanos - for_earlier_days_nanos + late_nanos + credited_nanos AS adjusted_spend_nanos
FROM
(
    SELECT
        billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country,
        device, currency, impressions AS seen, clicks AS clicked, spend_nanos AS spend,
        free_nanos AS free, toInt64(0) AS earlier, toInt64(0) AS late, toInt64(0) AS credited
    FROM reporting.daily
    UNION ALL
    SELECT
        billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country,
        device, currency, 0, 0, 0, 0, 0, amount_nanos, 0
    FROM billing.events
    WHERE posting_day != billing_day AND disposition = 'charged'
    UNION ALL
    SELECT
        posting_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country,
        device, currency, 0, 0, 0, 0, amount_nanos, 0, 0
    FROM billing.events
    WHERE posting_day != billing_day AND disposition = 'charged'
    UNION ALL
    SELECT
        billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country,
        device, currency, 0, 0, 0, 0, 0, 0, amount_nanos
    FROM billing.credits
    WHERE posting_day != billing_day
    UNION ALL
    SELECT
        posting_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country,
        device, currency, 0, 0, 0, 0, amount_nanos, 0, 0
    FROM billing.credits
    WHERE posting_day != billing_day
)
WHERE (account_id, billing_day) IN (SELECT account_id, billing_day FROM billing.day_closes)
GROUP BY
    billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device,
    currency;

-- What reporting.live sums up, row by row: an event of a day that is still open, or a credit posted
-- in one. For pages that sum in their own way: a campaign's figures over these rows take a tenth of
-- what they take over reporting.live, which first sums by everything that it shows.
CREATE OR REPLACE VIEW reporting.live_rows ${on_cluster} AS
SELECT
    journal_partition,
    decided_at_ms,
    posting_day AS billing_day,
    account_id,
    campaign_id,
    ad_group_id,
    promoted_pin_id,
    placement,
    country,
    device,
    currency,
    basis,
    toInt64(kind = 'impression') AS impressions,
    toInt64(kind = 'click') AS clicks,
    toInt64(kind = 'closeup') AS closeups,
    toInt64(kind = 'save') AS saves,
    toInt64(kind = 'install') AS installs,
    toInt64(disposition = 'charged' AND basis = 'cpm') AS charged_impressions,
    toInt64(disposition = 'charged' AND basis = 'cpc') AS charged_clicks,
    toInt64(disposition = 'charged' AND basis = 'cpe') AS charged_engagements,
    amount_nanos AS spend_nanos,
    free_nanos
FROM
(
    SELECT
        journal_partition, posting_day, account_id, campaign_id, ad_group_id, promoted_pin_id,
        placement, country, device, currency, decided_at_ms, kind, disposition, basis,
        amount_nanos, free_nanos
    FROM billing.events
    WHERE disposition IN ('charged', 'counted', 'over_budget', 'repeat', 'not_serving')
    UNION ALL
    SELECT
        journal_partition, posting_day, account_id, campaign_id, ad_group_id, promoted_pin_id,
        placement, country, device, currency, posted_at_ms, '', 'credited', basis,
        amount_nanos, 0
    FROM billing.credits
)
WHERE posting_day >= (SELECT min(first_open_day) FROM reporting.open_days)
    AND (account_id, posting_day) NOT IN
    (
        SELECT account_id, billing_day
        FROM billing.day_closes
        WHERE billing_day >= (SELECT min(first_open_day) FROM reporting.open_days)
    );

-- Provisional figures of the days that are still open. An ad belongs to one shard, whose journal is
-- written here in order: a row holds everything that its shard had decided at as_of_ms.
CREATE OR REPLACE VIEW reporting.live_figures ${on_cluster} AS
SELECT
    max(decided_ms) OVER (PARTITION BY journal_partition) AS as_of_ms,
    'provisional' AS status,
    figures.* EXCEPT (journal_partition, decided_ms)
FROM
(
    SELECT
        journal_partition,
        billing_day,
        account_id,
        campaign_id,
        ad_group_id,
        promoted_pin_id,
        placement,
        country,
        device,
        currency,
        max(decided_at_ms) AS decided_ms,
        sum(impressions) AS impressions,
        sum(clicks) AS clicks,
        sum(closeups) AS closeups,
        sum(saves) AS saves,
        sum(installs) AS installs,
        sum(charged_impressions) AS charged_impressions,
        sum(charged_clicks) AS charged_clicks,
        sum(charged_engagements) AS charged_engagements,
        sum(spend_nanos) AS spend_nanos,
        sum(free_nanos) AS free_nanos
    FROM reporting.live_rows
    GROUP BY
        journal_partition, billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id,
        placement, country, device, currency
) AS figures;
