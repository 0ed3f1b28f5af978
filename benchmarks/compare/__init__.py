"""What benchmark.py runs: detectors to time, their times and stages, tables and plots."""
