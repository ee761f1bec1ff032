"""Kangaroo: early exits with a trained adapter."""

from specbench_methods.kangaroo.method import METHOD, Kangaroo, KangarooOptions

__all__ = ["METHOD", "Kangaroo", "KangarooOptions"]
