"""Metrics of detections against ground truth, one module each."""
