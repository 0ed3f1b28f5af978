"""Tools of `dataset.py`: check, fix, split, convert, statistics, anchors, demo data and downloads."""
