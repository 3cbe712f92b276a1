"""Training: settings, one loop, tasks, checkpoints and reports; `python -m gmoe_ext.train` is its command line."""
