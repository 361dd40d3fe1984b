"""Measurements of speed, memory and robustness: scripts, the project's targets, and stored results."""
