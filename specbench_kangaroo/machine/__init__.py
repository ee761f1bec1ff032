"""This machine: versions, devices, what they can compute, what NVML says, and the cache folder.

Knows nothing of models, methods or runs.  Imports ``record``; torch only inside functions.
"""
