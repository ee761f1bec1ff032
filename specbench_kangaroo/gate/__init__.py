"""The regression gate: one run compared with another.  Nothing here imports torch."""
