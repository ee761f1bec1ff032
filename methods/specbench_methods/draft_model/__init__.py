"""A small independent model drafts."""

from specbench_methods.draft_model.method import METHOD, DraftModel, DraftModelOptions

__all__ = ["METHOD", "DraftModel", "DraftModelOptions"]
