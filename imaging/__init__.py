"""Images and the boxes on them: reading and writing, resizing to the input size, detections and drawing."""
