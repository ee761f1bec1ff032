"""A run: what was asked for, in which order, and how every answer is made and judged.

A prompt's way: ``config`` (as asked) - ``setup`` (loaded) - ``schedule`` (in order) -
``generation`` (one answer) - ``runner`` (the whole run) - ``record.writer``.  ``perform`` goes
that way for whoever asks, ``study`` for Python, and ``dry_run`` tells of it beforehand.

Knows the engine, models and records.  Does not know any method by name but the baseline, nor how
figures are computed or shown: imports ``engine``, ``models``, ``machine`` and ``record``.
"""
