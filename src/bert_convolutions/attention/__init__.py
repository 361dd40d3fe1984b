"""Composite attention in plain PyTorch: the score equation, its terms, option strings, projections, segments.

Start with ``composite``. ``cpu`` and ``triton`` compute the same results faster. This package imports nothing else of
the project and raises ``ValueError`` for invalid arguments.
"""
