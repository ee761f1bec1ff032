"""The regression gate: one run held against another.  Nothing here imports torch."""
