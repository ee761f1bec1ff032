"""Self-speculation with some of the target's own layers, untrained."""

from specbench_methods.layer_skip.method import METHOD, LayerSkip, LayerSkipOptions

__all__ = ["METHOD", "LayerSkip", "LayerSkipOptions"]
