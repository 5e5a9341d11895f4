"""Training infrastructure: optimizers, weight averages, checkpoints, meshes, and what a run writes."""
