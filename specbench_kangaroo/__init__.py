"""Benchmark harness for speculative decoding: one engine, one cache, one acceptance rule, one loop."""

__version__ = "0.1.0"
