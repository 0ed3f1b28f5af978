"""The HTTP service, its page and the labelling page; `serve.py` starts it."""
