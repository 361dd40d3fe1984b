"""Experiments as data: the commands of a comparison, their execution, and statistics of their results."""
