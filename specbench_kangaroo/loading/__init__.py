"""Targets from the package index, the hub or a folder, with tokenizers and the weights' hashes."""
