"""Speed figures: whole processes on a real Kafka, beside the peers that a user would pick."""
