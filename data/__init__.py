"""From files of any format to images and targets."""
