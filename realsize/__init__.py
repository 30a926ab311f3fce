"""The released weights, one GPU or many, and what it costs."""
