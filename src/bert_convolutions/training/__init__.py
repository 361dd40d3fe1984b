"""What this project adds to the Trainer: the pre-training run, exact resumption, safe checkpoints."""
