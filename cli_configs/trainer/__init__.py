"""How to train: processes, clusters, debugging."""
