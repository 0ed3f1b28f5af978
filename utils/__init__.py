"""Shared utilities: errors, options, files, threads and downloads."""
