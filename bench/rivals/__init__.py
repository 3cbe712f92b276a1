"""What the operators are measured against: the same job in plain PyTorch, and in the libraries people use for it."""
