"""What a shell offers after ``specbench train``, which it reads, against what importing tells."""

from __future__ import annotations

from specbench_kangaroo.cli.completion import trainable_methods
from specbench_kangaroo.training.trainable import trainable_names


def test_reading_the_methods_finds_those_that_can_be_trained() -> None:
    assert trainable_methods() == trainable_names(), (
        "Tab after `specbench train` offers a method that is refused, or hides one that is not; "
        "completion.py looks for the hook `trainee` in the method's own module"
    )
