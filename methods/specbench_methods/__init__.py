"""The methods that come with the harness, each a module or a package, found by its name.

``shared`` is what several of them use and is no method; ``weights`` are those that are shipped.
"""
