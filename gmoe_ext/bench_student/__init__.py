"""What an answer of a packed student costs, beside its teacher and other ways to serve: a latency report.

``python -m gmoe_ext.bench_student FILE_OR_RUN_DIR``; see ``docs/guides/latency.md``.
"""
