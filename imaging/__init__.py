"""Images and the boxes on them: reading, writing, resizing, detections, drawing."""
