"""Implementation of benchmark.py: detectors, measurements, tables and plots."""
