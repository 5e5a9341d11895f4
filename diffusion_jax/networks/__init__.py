"""Networks: Flax NNX modules `net(x, c_noise, cond, *, rngs=None)`, made functional by `networks/functional.py`."""
