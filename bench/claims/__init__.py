"""Every promise about speed as data: who runs against whom on which inputs, and what the ratio has to be.

    python -m bench.claims [--only NAME] [--threads 1] [--json FILE]

This package imports no torch by itself: the allocator's setting is read when torch loads, and `__main__` makes it.
"""
