"""Measurements. Each ``bench_*.py`` has ``rows()``; ``python -m tests.bench`` runs them all."""
