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
