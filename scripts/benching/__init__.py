"""Measurements of scripts/bench.py, one module a subject."""
