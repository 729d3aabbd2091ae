-- The record of accuracy knows of budgets that were foretold to run out and did not, and of those
-- that did although nothing had foretold it.
-- Placeholders and common choices: see 0001_ledger.sql.

-- Totals and quantiles (realised less predicted) are of predictions that have both a predicted and
-- a realised figure: of kind `exhaustion` 0 is none. predicted 0 says that a budget lasts, and with
-- a lower bound that it may run out from then on; realised 0, that it has not by the end of the day
-- (realised_at_ms), which is within an interval that reaches to there.
CREATE OR REPLACE VIEW reporting.pacing_quality ${on_cluster} AS
SELECT
    entity,
    kind,
    count() AS predictions,
    sumIf(predicted, has_both) AS predicted_total,
    sumIf(realised, has_both) AS realised_total,
    quantileExactIf(0.1)(realised - predicted, has_both) AS error_q10,
    quantileExactIf(0.5)(realised - predicted, has_both) AS error_q50,
    quantileExactIf(0.9)(realised - predicted, has_both) AS error_q90,
    countIf(held) AS within_interval,
    countIf(NOT has_both AND realised = 0) AS only_foretold,
    countIf(NOT has_both AND realised > 0) AS only_came
FROM
(
    SELECT
        entity,
        kind,
        predicted,
        realised,
        kind != 'exhaustion' OR (predicted > 0 AND realised > 0) AS has_both,
        multiIf(
            has_both, realised >= `low` AND realised <= `high`,
            realised = 0, `high` >= realised_at_ms,
            `low` > 0 AND realised >= `low`
        ) AS held
    FROM reporting.pacing
    WHERE realised_at_ms > 0
)
GROUP BY entity, kind;
