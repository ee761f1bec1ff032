"""transformers' own generate as a method: what users would run without this package."""

from specbench_methods.hf_generate.method import METHOD

__all__ = ["METHOD"]
