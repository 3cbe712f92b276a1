"""What can be trained: a GNN on nodes or molecules, and a student distilled from a GNN."""
