"""A profile as one JSON document; keys that do not apply are absent.

The first backend's figures stand at the top, where readers of version 1 look for them, and those of
each further one under ``backends``.

Schema history
    1 (2026-11): first version.
    2 (2026-11): backends, vanilla_over_floor, matmul_tflop_s; random weights, which have no figure
        of what drafts are worth, and say so under ``weights``; more rows of ``verify_ms``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from specbench_kangaroo.microbench.figures import EngineProfile, MethodProfile, Profile
from specbench_kangaroo.stats.bootstrap import Estimate

PROFILE_VERSION = 2


def to_json(profile: Profile) -> dict[str, Any]:
    """The document of ``specbench profile --format json``."""
    (_, first), *others = profile.engines.items()
    document = {
        "schema_version": PROFILE_VERSION,
        **profile.about,
        **_figures(profile.limits),
        **_engine_json(first),
    }
    if others:
        document["backends"] = {name: _engine_json(engine) for name, engine in others}
    return document


def _engine_json(engine: EngineProfile) -> dict[str, Any]:
    methods = {name: _method_json(method) for name, method in engine.methods.items()}
    drafting = [method for method in methods.values() if "draft_step_ms" in method]
    counts = {"generate_differs": engine.generate_differs}
    return {
        **_figures(engine.estimates),
        **_known(counts),
        "verify_ms": {str(rows): asdict(item) for rows, item in engine.verify_ms.items()},
        "verify_ratio": {str(rows): asdict(item) for rows, item in engine.verify_ratio.items()},
        **({"draft_step_ms": drafting[0]["draft_step_ms"]} if drafting else {}),
        "methods": methods,
    }


def _method_json(method: MethodProfile) -> dict[str, Any]:
    counts = {"differs": method.differs, "generate_differs": method.generate_differs}
    return _figures(method.estimates) | _known(counts)


def _figures(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {key: asdict(figure) for key, figure in found.items()}


def _known(counts: Mapping[str, int | None]) -> dict[str, Any]:
    return {key: count for key, count in counts.items() if count is not None}
