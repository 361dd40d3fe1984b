"""``bertconv bench``: measures contestants in turn on the same text; reports medians and ratios."""
