"""Evaluation of masked language models without fine-tuning: minimal pairs and local word order."""
