-- What pacing predicted and how right it was; and the predicted exhaustion in reporting.live.
-- Placeholders and common choices: see 0001_ledger.sql.

-- One row for each prediction of the journal. Of kind `inflight` (nanos still to come after a
-- pause) there is one row, written when it has come; of kind `exhaustion` (when a budget will have
-- run out, ms) one whenever the prediction moves, and one more, with realised_at_ms, when it has.
CREATE TABLE IF NOT EXISTS reporting.pacing ${on_cluster}
(
    entity String,
    kind LowCardinality(String) COMMENT 'inflight, exhaustion, bid',
    billing_day Date,
    made_at_ms Int64,
    predicted Int64 COMMENT 'inflight: nanos; exhaustion: ms, 0 for not on this day',
    `low` Int64 COMMENT 'Lower bound of what was thought 80 % likely',
    `high` Int64,
    realised Int64,
    realised_at_ms Int64 COMMENT '0: not yet',
    journal_partition UInt16,
    journal_offset Int64,
    INDEX journal_index journal_offset TYPE minmax GRANULARITY 8
)
ENGINE = ${merge_tree}
PARTITION BY toYYYYMM(billing_day)
ORDER BY (entity, kind, made_at_ms, journal_partition, journal_offset)
SETTINGS ${exactly_once};

-- The record of accuracy: quantiles of realised less predicted, and how often the interval held.
CREATE OR REPLACE VIEW reporting.pacing_quality ${on_cluster} AS
SELECT
    entity,
    kind,
    count() AS predictions,
    sum(predicted) AS predicted_total,
    sum(realised) AS realised_total,
    quantileExact(0.1)(realised - predicted) AS error_q10,
    quantileExact(0.5)(realised - predicted) AS error_q50,
    quantileExact(0.9)(realised - predicted) AS error_q90,
    countIf(realised >= `low` AND realised <= `high`) AS within_interval
FROM
(
    SELECT entity, kind, predicted, `low`, `high`, realised
    FROM reporting.pacing
    WHERE realised_at_ms > 0
)
GROUP BY entity, kind;

-- The last word on each ad group and day. predicted 0: its budget lasts.
CREATE OR REPLACE VIEW reporting.exhaustion ${on_cluster} AS
SELECT
    substring(entity, length('ad_group:') + 1) AS ad_group_id,
    billing_day,
    max(made_at_ms) AS predicted_at_ms,
    argMax(predicted, made_at_ms) AS runs_out_ms,
    argMax(`low`, made_at_ms) AS runs_out_low_ms,
    argMax(`high`, made_at_ms) AS runs_out_high_ms
FROM reporting.pacing
WHERE kind = 'exhaustion' AND realised_at_ms = 0
GROUP BY entity, billing_day;

-- The provisional figures, with when the ad group's budget is predicted to have run out; 0 where
-- nothing says that it will on that day. ifNull: for clients that ask for join_use_nulls.
CREATE OR REPLACE VIEW reporting.live ${on_cluster} AS
SELECT
    figures.*,
    ifNull(exhaustion.runs_out_ms, 0) AS runs_out_ms,
    ifNull(exhaustion.runs_out_low_ms, 0) AS runs_out_low_ms,
    ifNull(exhaustion.runs_out_high_ms, 0) AS runs_out_high_ms
FROM reporting.live_figures AS figures
LEFT JOIN reporting.exhaustion AS exhaustion
    ON figures.ad_group_id = exhaustion.ad_group_id
    AND figures.billing_day = exhaustion.billing_day;
