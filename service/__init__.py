"""The detector behind HTTP: batches, limits, metrics and the page; `serve.py` starts it."""
