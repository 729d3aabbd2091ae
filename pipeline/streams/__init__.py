"""From Kafka to Kafka: the worker that owns shards, decides them, and appends to the journal.

Owns the Faust app with its chunk transport, the engine that decides all shards in one pass, shard
ownership and recovery, the journal's writer and readers, and the outbox. Invariant: nothing is
sent anywhere before the journal record that says so is acknowledged and known to count.
"""
