"""Draft heads: text from the target itself, its hidden states, and the fit to them.

Knows what a trainable method offers, no method by name.  Imports ``engine``, ``models``,
``machine``, ``record`` and the registry of methods.
"""
