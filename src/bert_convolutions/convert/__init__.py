"""Checkpoints of other programs into ours."""
