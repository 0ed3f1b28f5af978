"""Training runs: options, training loop, optimiser, resumable state, run folder."""
