"""What several folders use: errors, options, files, images, drawing, detections."""
