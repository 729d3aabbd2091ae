-- Adjustments of days from before an account's first one.
-- Placeholders and common choices: see 0001_ledger.sql.

-- As in 0004_finance.sql, but with the days before an account's first one. They have no row in
-- billing.day_closes, for the account had no event in time for them; where its first event is late,
-- they are what it adjusts, and without them adjusted spend lacked what for_earlier_days_nanos took.
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
) AS posted
INNER JOIN reporting.open_days AS open USING (account_id)
WHERE billing_day < first_open_day
GROUP BY
    billing_day, account_id, campaign_id, ad_group_id, promoted_pin_id, placement, country, device,
    currency;
