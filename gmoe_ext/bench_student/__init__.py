"""Measure the latency of a packed student beside its teacher and other ways to serve it.

``python -m gmoe_ext.bench_student FILE_OR_RUN_DIR``; see ``docs/guides/latency.md``.
"""
