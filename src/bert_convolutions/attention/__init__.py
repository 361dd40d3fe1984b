"""What the paper says, in plain PyTorch: the score equation, its terms, option strings, projections, segments.

Start with ``composite``. ``cpu`` computes the same numbers faster. Imports nothing else of this project; what can't be
raises ``ValueError``.
"""
