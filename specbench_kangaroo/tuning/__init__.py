"""Logged drafts replayed at other settings, what those would cost, and the best of them.

Imports ``report``, ``stats``, ``record`` and a run's request; no torch.
"""
