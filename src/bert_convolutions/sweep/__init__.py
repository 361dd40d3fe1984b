"""Experiments as data: the commands that a comparison needs, their execution, and the statistics of what they gave."""
