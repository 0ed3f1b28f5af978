"""Data sets: from files of any supported format to training batches."""
