"""GLUE: tasks, reading, fine-tuning, prediction, submission."""
