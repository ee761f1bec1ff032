"""How slow this machine is just now: limits of processor time that hold on any machine.

A limit says what a user would wait on the machine that the project is developed on.  A fixed piece
of work, timed beside what is limited, says how much longer everything takes here.
"""

from __future__ import annotations

import json
import time

_WORK = {"rows": [{"key": str(number), "value": number / 7} for number in range(20_000)]}
_WORK_S = 0.08  # of processor time, on the machine of the limits when it is idle


def slowness() -> float:
    """How many times longer than on the machine of the limits; 1 where it is quicker."""
    start_s = time.process_time()
    for _ in range(2):
        json.loads(json.dumps(_WORK))
    sum(number * number % 7 for number in range(200_000))
    return max(1.0, (time.process_time() - start_s) / _WORK_S)
