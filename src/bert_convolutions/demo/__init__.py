"""The whole path on public-domain speeches, in minutes."""
