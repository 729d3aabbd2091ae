"""The ledger's rules: decoding, judging, state, dedupe, and the journal that is the state.

Everything here is pure: what an event costs whom is a function of the state, the chunk of events,
the catalog and `now`. No Kafka, no ClickHouse, no clock, no I/O.
"""
