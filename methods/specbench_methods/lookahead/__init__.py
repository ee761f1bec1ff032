"""Lookahead decoding: n-grams from a Jacobi window."""

from specbench_methods.lookahead.method import METHOD, Lookahead, LookaheadOptions

__all__ = ["METHOD", "Lookahead", "LookaheadOptions"]
