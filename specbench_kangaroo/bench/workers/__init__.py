"""Several workers that share a run's questions, each with a model and a device of its own.

A worker answers a question with all methods, so that every ratio stays within one device.  This
process, the driver, loads no model: it deals questions out, and it alone writes the run folder.

Only :mod:`specbench_kangaroo.bench.workers.cluster` imports Ray, and a run with one worker imports
nothing of this package.
"""
