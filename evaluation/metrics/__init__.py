"""Measures of detections against ground truth, one file each."""
