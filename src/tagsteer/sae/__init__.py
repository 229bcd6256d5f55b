"""Sparse autoencoders: the one type, its loaders, its training, its health. Knows no language model and no text."""
