"""From the journal to ClickHouse, and back: tables, closed days, reconciliation, explanations.

Owns the schema (`sql/`), the reporter that writes it, and everything that reads it. Invariants:

- every row is derived from the journal (or `ads.catalog`) and says from which record;
- rows are written exactly once, whatever is killed when (`plans`, `reporter`);
- a closed day's rows never change (`closes`);
- nothing here decides: what an event costs whom was decided when its record was appended.

Knows no Kafka: logs are read through `pipeline.contract.log.LogReader`.
"""
