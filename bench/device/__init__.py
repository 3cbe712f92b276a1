"""What runs on a machine with a GPU: run.sh, and the programs it needs."""
