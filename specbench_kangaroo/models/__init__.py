"""What is loaded: targets from the package index, the hub or a folder, their prompts and heads.

Knows files, hashes and transformers' loaders.  Does not know how a model is run layer by layer, or
what for: imports ``record`` and ``machine``; torch only inside functions.
"""
