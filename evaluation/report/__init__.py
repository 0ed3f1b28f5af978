"""Reports of an evaluation: text and HTML."""
