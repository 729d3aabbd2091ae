"""Billing, pacing and reporting of Promoted Pins as a stream. Layers: docs/architecture.md."""
