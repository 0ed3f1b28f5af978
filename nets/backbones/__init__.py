"""Backbones, one file per architecture; files added here are found automatically (see registry.py)."""
