"""One reader and writer for each annotation format; every reader returns a DatasetIndex."""
