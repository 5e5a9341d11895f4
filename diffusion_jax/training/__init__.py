"""Training: train step, loop, EMA, optimizers, meshes, checkpoints, loggers and progress."""
