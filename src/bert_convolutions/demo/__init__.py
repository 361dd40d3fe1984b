"""A demo of the whole pipeline on public-domain speeches, in minutes."""
