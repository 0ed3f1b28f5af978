"""Scoring: one evaluator, the metrics, and the reports."""
