"""The shared vocabulary: what every other package may speak of.

Owns the words and values of the public contract (`docs/contract.md`): topics, events,
dispositions, money, billing days, catalog entities, signals and rejects. Everything here is pure:
no Kafka, no ClickHouse, no clock, no I/O.
"""
