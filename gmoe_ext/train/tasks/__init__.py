"""What can be trained: node classification, molecule prediction, distillation. Each is a `loop.Task`."""
