"""DiLoCo (arXiv:2311.08105): the inner and outer optimizers, averaging, and the round that joins them."""
