"""From files of any format to training batches."""
