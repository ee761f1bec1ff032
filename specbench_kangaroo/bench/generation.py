"""One generation as a run records it: its prompt, the decoding, and what went wrong if it did."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from msgspec.structs import replace

from specbench_kangaroo.bench.pauses import without_captures
from specbench_kangaroo.bench.schedule import Round, chance_seed
from specbench_kangaroo.bench.setup import Bench
from specbench_kangaroo.engine.clock import clock_for
from specbench_kangaroo.engine.decode import Decoded, Limits, PromptTooLongError, decode
from specbench_kangaroo.engine.sampling import Sampler, SeededChance
from specbench_kangaroo.machine.devices import peak_rss_mb
from specbench_kangaroo.machine.nvml import Gauge, Usage
from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import DeviceLostError
from specbench_kangaroo.record.schema import BASELINE, Generation, GenerationKey, Status, StepRecord

# Texts of plain RuntimeErrors: torch's allocator on the CPU, a CUDA library's own, a CUDA call's.
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
_LOST = "CUDA error: "

Answers = Mapping[GenerationKey, Generation]


class NoAnswerError(Exception):
    """The baseline has no answer to an earlier turn, so that this turn has no prompt."""


def prompt_of(bench: Bench, item: Round, answers: Answers) -> list[int]:
    """Token ids of the round's prompt, which continues the baseline's answers to earlier turns.

    Raises:
        NoAnswerError: one of those failed.
        PromptTooLongError: one of those did not fit, so this one cannot either.
    """
    turns = item.question.turns
    history: list[str] = []
    for turn in range(item.turn):
        answer = answers[item.key(BASELINE, turn=turn)]
        if answer.status is Status.PROMPT_TOO_LONG:
            raise PromptTooLongError(f"the prompt of turn {turn} was too long already")
        if answer.status is not Status.OK:
            raise NoAnswerError(f"{BASELINE} failed on turn {turn}, which this turn continues")
        history += [turns[turn], answer.text]
    return chat_prompt(
        bench.loaded.tokenizer,
        [*history, turns[item.turn]],
        template=bench.request.target.template,
    )


def generate(
    bench: Bench, item: Round, entry: str, answers: Answers, *, at_most: int | None = None
) -> tuple[Generation, Sequence[StepRecord]]:
    """The entry's answer to the round's prompt, and its steps.

    An exception becomes the generation's status and error text: one bad prompt, or an entry that
    fails on it, must not cost a run of hours.

    Raises:
        DeviceLostError: nothing can be generated in this process any more.

    ``answers`` are the run's generations so far, for a prompt that continues one; ``at_most`` is
    for a warm-up, which has fewer new tokens than the run's limit.
    """
    prompt: list[int] = []
    steps: Sequence[StepRecord] = ()
    out_of_memory = False
    try:
        prompt = prompt_of(bench, item, answers)
        decoding = partial(_decode, bench, item, entry, prompt, at_most)
        decoded, used = without_captures(bench.target, decoding)
    except PromptTooLongError as error:
        outcome = _failure(Status.PROMPT_TOO_LONG, f"{type(error).__name__}: {error}")
    except Exception as error:
        if is_device_lost(error):
            raise DeviceLostError(_lost_text(error, item, entry)) from error
        out_of_memory = is_out_of_memory(error)
        text = _memory_text(error) if out_of_memory else f"{type(error).__name__}: {error}"
        outcome = _failure(Status.ERROR, text)
    else:
        outcome, steps = _answer(bench, decoded) | asdict(used), decoded.steps
    if out_of_memory:
        reclaim()  # here, where the error and what it held are gone
    peak_mb = round(peak_rss_mb(), 1)
    blank = replace(item.unanswered(entry), prompt_tokens=len(prompt), peak_rss_mb=peak_mb)
    return replace(blank, **outcome), steps


def _decode(
    bench: Bench, item: Round, entry: str, prompt: Sequence[int], at_most: int | None
) -> tuple[Decoded, Usage]:
    """Decode, and read the device's gauge around it."""
    limit = bench.decoding.max_new_tokens
    sampler = None
    if bench.sampling is not None:
        sampler = Sampler(bench.sampling, SeededChance(chance_seed(bench.decoding.seed, item)))
    gauge = Gauge(bench.target.device)  # before the first stamp
    decoded = decode(
        bench.target,
        bench.methods[entry],
        prompt,
        limits=Limits(
            max_new_tokens=limit if at_most is None else min(at_most, limit),
            eos=bench.loaded.eos_token_ids,
        ),
        # A new one each time: a generation that failed leaves its stamps in its clock.
        clock=clock_for(bench.target.device),
        sampler=sampler,
    )
    return decoded, gauge.read()  # after the read-out


def _answer(bench: Bench, decoded: Decoded) -> dict[str, Any]:
    ids = list(decoded.output_ids)
    return {
        "output_ids": decoded.output_ids,
        "text": bench.loaded.tokenizer.decode(ids, skip_special_tokens=True),
        "new_tokens": len(ids),
        "target_passes": decoded.target_passes,
        "ttft_ms": decoded.ttft_ms,
        "total_ms": decoded.total_ms,
    }


def _failure(status: Status, text: str) -> dict[str, Any]:
    # A path in it may hold bytes that are no text, which no file of records can.
    return {"status": status, "error": text.encode(errors="backslashreplace").decode()}


def _lost_text(error: Exception, item: Round, entry: str) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return (
        f"the device was lost while {entry} answered question {item.question.question_id} "
        f"({reason}); see that it works (specbench doctor)"
    )


def _memory_text(error: Exception) -> str:
    where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    advice = "fewer --max-new-tokens, fewer entries or a smaller --dtype take less"
    return f"{type(error).__name__}{where} ({advice}): {error}".rstrip(": ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether no later call of this process can succeed on the device.

    After an illegal access, a failed assertion in a kernel or a fault of the hardware every CUDA
    call of the process fails with the same error; another process may well work.
    """
    if is_out_of_memory(error):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)  # torch 2.8 or newer
    known = accelerator is not None and isinstance(error, accelerator)
    return known or (isinstance(error, RuntimeError) and _LOST in str(error))


def reclaim() -> None:
    """Free what nobody refers to any more, and hand it back to the devices.

    Call it when the error is gone too: its traceback holds every tensor of the frames it crossed.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
