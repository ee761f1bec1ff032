"""The regression gate: may two runs be compared, and does the second one fail.

Imports ``report``, ``stats`` and ``record``, and no torch.
"""
