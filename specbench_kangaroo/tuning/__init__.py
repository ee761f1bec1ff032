"""Logged drafts replayed at other settings, what those would cost, and the best of them."""
