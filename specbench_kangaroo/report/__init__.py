"""What a reader is shown of a run: tables and documents in every format, and figures.

``sheets`` says what is in a report, the other modules draw it.  Computes no metric.  Imports
``stats`` and ``record``, and no torch.
"""
