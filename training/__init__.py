"""One training run: options, loop, optimiser, state to resume from, run folder."""
