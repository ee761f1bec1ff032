"""How tokens are made: one loop, one cache, one token tree and one acceptance rule for all methods.

A tree has nodes, a pass of the target has rows (one a node, or one a token of a prompt), and a
cache has slots.  ``method`` is the page that a method's author reads; ``decode`` is the loop.

Knows tensors and the target's layers.  Does not know any method, questions, runs or files: it
imports ``record`` alone, for the schema of a step and for errors.
"""
