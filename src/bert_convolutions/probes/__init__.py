"""What a masked language model knows without fine-tuning: minimal pairs, and the order of neighbouring words."""
