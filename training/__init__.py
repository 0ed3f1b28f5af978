"""What train.py needs besides its options and its loop: checks of options, saving and resuming, pictures of a run."""
