"""Running a detector on images, videos and streams, and writing what it detects."""
