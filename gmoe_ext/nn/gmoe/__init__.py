"""GMoE (Graph Mixture of Experts): layers whose nodes each choose k of n graph convolutions."""
