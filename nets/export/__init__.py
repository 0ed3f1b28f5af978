"""Exported files: writing them, checking them against the network, and running them."""
