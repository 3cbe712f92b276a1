"""Time per unit of work over sizes, and peak memory: does an operator stay what it is when its input grows?

    python -m bench.scaling

Writes bench/results/scaling.json, docs/scaling.png and docs/performance.md. Imports no torch by itself: the
allocator's setting is read when torch loads, and `__main__` makes it.
"""
