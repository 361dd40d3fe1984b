"""Conversion of other programs' checkpoints into ours."""
