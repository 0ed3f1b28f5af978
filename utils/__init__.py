"""What would serve any detector: data, drawing, metrics, the training engine. Never imports `nets`."""
