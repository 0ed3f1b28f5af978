"""Evaluation: the evaluator, metrics and reports."""
