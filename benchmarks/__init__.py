"""Benchmarks that produce the published figures, one command each: `python -m benchmarks.NAME`."""
