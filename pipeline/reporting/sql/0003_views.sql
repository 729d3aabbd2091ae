-- Views for dashboards. All are plain SELECTs over the tables: nothing to refresh, nothing to lag.

-- Closed days with amounts in units of the currency and the usual ratios. Decimal all through: a
-- price never passes a float. Ratios of more than one row must be computed from the summed columns.
CREATE OR REPLACE VIEW reporting.dashboard_daily ${on_cluster} AS
SELECT
    daily.billing_day AS billing_day,
    daily.account_id AS account_id,
    daily.campaign_id AS campaign_id,
    daily.ad_group_id AS ad_group_id,
    daily.promoted_pin_id AS promoted_pin_id,
    daily.placement AS placement,
    daily.country AS country,
    daily.device AS device,
    daily.currency AS currency,
    daily.impressions AS impressions,
    daily.clicks AS clicks,
    daily.closeups AS closeups,
    daily.saves AS saves,
    daily.installs AS installs,
    daily.charged_impressions AS charged_impressions,
    daily.charged_clicks AS charged_clicks,
    daily.charged_engagements AS charged_engagements,
    toDecimal128(daily.spend_nanos, 9) / 1000000000 AS spend,
    toDecimal128(daily.free_nanos, 9) / 1000000000 AS overdelivery,
    if(daily.impressions = 0, 0., daily.clicks / greatest(daily.impressions, 1)) AS ctr,
    if(daily.charged_clicks = 0, toDecimal128(0, 9),
       spend / greatest(daily.charged_clicks, 1)) AS cpc,
    if(daily.charged_impressions = 0, toDecimal128(0, 9),
       spend * 1000 / greatest(daily.charged_impressions, 1)) AS cpm,
    if(daily.charged_engagements = 0, toDecimal128(0, 9),
       spend / greatest(daily.charged_engagements, 1)) AS cpe
FROM reporting.daily AS daily
INNER JOIN billing.day_closes AS closed
    ON daily.billing_day = closed.billing_day AND daily.account_id = closed.account_id;

-- The first day of each account that is not closed yet. (No outer join: it would give NULLs to a
-- client that asks for join_use_nulls.)
CREATE OR REPLACE VIEW reporting.open_days ${on_cluster} AS
SELECT account_id, max(first_open_day) AS first_open_day
FROM
(
    SELECT account_id, min(first_day) AS first_open_day
    FROM reporting.accounts
    GROUP BY account_id
    UNION ALL
    SELECT account_id, max(billing_day) + 1 AS first_open_day
    FROM billing.day_closes
    GROUP BY account_id
)
GROUP BY account_id;

-- Provisional figures of the days that are still open. An ad belongs to one shard, whose journal is
-- written here in order: a row holds everything that its shard had decided at as_of_ms.
CREATE OR REPLACE VIEW reporting.live ${on_cluster} AS
SELECT
    max(decided_ms) OVER (PARTITION BY journal_partition) AS as_of_ms,
    'provisional' AS status,
    posting_day AS billing_day,
    account_id,
    campaign_id,
    ad_group_id,
    promoted_pin_id,
    placement,
    country,
    device,
    currency,
    impressions,
    clicks,
    closeups,
    saves,
    installs,
    charged_impressions,
    charged_clicks,
    charged_engagements,
    spend_nanos,
    free_nanos
FROM
(
    SELECT
        journal_partition,
        posting_day,
        account_id,
        campaign_id,
        ad_group_id,
        promoted_pin_id,
        placement,
        country,
        device,
        currency,
        max(decided_at_ms) AS decided_ms,
        toInt64(countIf(kind = 'impression')) AS impressions,
        toInt64(countIf(kind = 'click')) AS clicks,
        toInt64(countIf(kind = 'closeup')) AS closeups,
        toInt64(countIf(kind = 'save')) AS saves,
        toInt64(countIf(kind = 'install')) AS installs,
        toInt64(countIf(disposition = 'charged' AND basis = 'cpm')) AS charged_impressions,
        toInt64(countIf(disposition = 'charged' AND basis = 'cpc')) AS charged_clicks,
        toInt64(countIf(disposition = 'charged' AND basis = 'cpe')) AS charged_engagements,
        sum(amount_nanos) AS spend_nanos,
        sum(free_nanos) AS free_nanos
    FROM billing.events
    WHERE disposition IN ('charged', 'counted', 'over_budget', 'repeat', 'not_serving')
        AND posting_day >= (SELECT min(first_open_day) FROM reporting.open_days)
        AND (account_id, posting_day) NOT IN
        (
            SELECT account_id, billing_day
            FROM billing.day_closes
            WHERE billing_day >= (SELECT min(first_open_day) FROM reporting.open_days)
        )
    GROUP BY
        journal_partition, posting_day, account_id, campaign_id, ad_group_id, promoted_pin_id,
        placement, country, device, currency
);
