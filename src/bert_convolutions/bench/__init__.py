"""``bertconv bench``: contestants in turn on the same text; medians and ratios as a table, JSON and a picture."""
