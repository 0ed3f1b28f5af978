"""What `dataset.py` runs: check, fix, split, convert, statistics, anchors, demo data and downloads."""
