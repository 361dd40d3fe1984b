"""Models for those who don't have this package."""
