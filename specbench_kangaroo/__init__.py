"""Benchmark harness for speculative decoding: one engine, cache, acceptance rule and loop."""

__version__ = "0.1.0"
