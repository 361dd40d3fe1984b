"""Export of models for use without this package."""
