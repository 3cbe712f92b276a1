"""Every claim about speed as data: which variants run on which inputs, and what their ratio must be.

    python -m bench.claims [--only NAME] [--threads 1] [--json FILE]

This package itself imports no torch: `__main__` sets the allocator's environment variable before torch loads.
"""
