"""Export: write model files for other runtimes, compare them with the network, and run them."""
