"""Our loop against the peer's, what verification costs by rows, and the memory floor.

Defines no metric.  Imports the rooms below the command line; torch at import.
"""
