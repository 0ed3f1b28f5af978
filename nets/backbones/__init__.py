"""One file for each architecture; a file added here is found by itself (see registry.py)."""
