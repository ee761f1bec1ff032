"""A run: what was asked for, in which order, and how every answer is made and judged.

A prompt's way: ``config`` (as asked) - ``setup`` (loaded) - ``schedule`` (in order) -
``generation`` (one answer) - ``runner`` (the whole run) - ``record.writer``.  ``perform`` goes
that way for whoever asks, and ``dry_run`` tells of it beforehand.

Knows the engine, models and records.  Does not know any method by name but the baseline, nor how
figures are computed or shown: imports ``engine``, ``models``, ``machine`` and ``record``.

This folder is also the public function ``specbench_kangaroo.run``, which makes a run from what a
study file has: see ``help(specbench_kangaroo.run.__call__)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from specbench_kangaroo.run.study import Study
from specbench_kangaroo.run.study import run as _run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from specbench_kangaroo.record.reader import Run
    from specbench_kangaroo.record.schema import Generation


class _CallableFolder(ModuleType):
    """Lets ``specbench_kangaroo.run`` be this folder and the public function at the same time.

    Python binds a folder's name in its package whenever a module of it is imported first, so that a
    function of that name would be there or not by the order of imports.
    """

    def __call__(
        self,
        study: Study,
        *,
        output: str | os.PathLike[str] | None = None,
        progress: Callable[[Generation], None] | None = None,
    ) -> Run:
        return _run(study, output=output, progress=progress)

    __call__.__doc__ = _run.__doc__


sys.modules[__name__].__class__ = _CallableFolder
