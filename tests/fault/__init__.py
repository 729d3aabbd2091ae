"""Faults, seeded: whatever is killed, stopped, broken or lied to, the books are the auditor's."""
