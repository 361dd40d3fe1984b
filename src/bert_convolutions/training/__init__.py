"""Extensions of the Hugging Face Trainer: the pre-training run, exact resumption and atomic checkpoints."""
