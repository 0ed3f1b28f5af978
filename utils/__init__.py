"""Shared utilities: errors, options, files, images, drawing and detections."""
