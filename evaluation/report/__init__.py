"""What an evaluation says to a reader: text and a page."""
