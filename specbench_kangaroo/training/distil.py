"""Training text from the target itself: its answers to many prompts, side by side, resumable.

A line of the output is ``{"task", "source", "prompt", "response_ids", "temperature"}``, with
"history" before a later turn (the texts of turns and answers by turns) and "template" where prompts
were not written with the tokenizer's own; the ids end with EOS where the target ended its answer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.jsonl import as_line, drop_torn_line, read_lines
from specbench_kangaroo.record.request import DEFAULT_TEMPLATE
from specbench_kangaroo.training.answering import Answering, Question
from specbench_kangaroo.training.text import HISTORY, TEMPLATE, Prompt, read_prompts

_WAITING_PER_PLACE = 8  # prompts to choose from by length, yet a file cut short is a fair sample


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilSettings:
    """What is asked of the target, and how much of it at once."""

    max_new_tokens: int = 256
    max_prompt_tokens: int = 768
    turns: int = 2  # of a conversation at most
    batch: int = 96
    limit: int | None = None  # the first conversations of the file that begin short enough
    sampled_share: float = 0.5  # the others are answered greedily
    min_temperature: float = 0.7  # of sampled answers, evenly up to max_temperature
    max_temperature: float = 1.0
    seed: int = 0
    template: str = DEFAULT_TEMPLATE


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of a run over the prompts."""

    answered: int  # now, later turns counted
    found: int  # conversations whose first answer was there
    too_long: int  # conversations whose first prompt is
    tokens: int  # of the answers made now


def distil(
    loaded: LoadedModel,
    prompts: Path,
    output: Path,
    settings: DistilSettings,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Distilled:
    """Append the target's answers to ``output`` as they end; finished ones are not redone.

    Whether an answer is sampled, how hot and with which draws depends on the seed and the prompt
    alone, so that a resumed run gives what one that was never stopped gives, but for rounding: a
    product of another number of rows may end in another last bit.

    Args:
        loaded: the target.  Its own generation config is put aside: a repetition penalty or a
            top-k from the hub would not be the text that decoding here meets.
        prompts: JSON lines, gzipped or not, of records with ``turns`` or ``prompt``.
        output: JSON lines; a last line that a kill has torn is dropped.
        on_progress: called with (conversations whose first turn is answered, conversations in
            all), before the first answer and after each.

    Raises:
        UsageError: unreadable prompts, a gzipped output, a context too short for the settings, or
            a family whose layers cannot be run one by one.
    """
    _check(loaded, output, settings)
    known = read_prompts(prompts, loaded.tokenizer, template=settings.template)
    short = [prompt for prompt in known if len(prompt.ids) <= settings.max_prompt_tokens]
    wanted = short[: settings.limit]
    finished = _finished(output)
    found = done = sum(prompt.asked in finished for prompt in wanted)
    later = _LaterTurns(loaded.tokenizer, settings)
    waiting = Waiting(later.unanswered(wanted, finished), _WAITING_PER_PLACE * settings.batch)
    answered = tokens = 0
    on_progress(done, len(wanted))
    with output.open("ab") as file:
        for prompt, question, response in _answers(loaded, waiting, settings):
            file.write(_line(prompt, response, question.temperature, settings.template))
            file.flush()
            waiting.add(later.after(prompt, response))
            answered, tokens = answered + 1, tokens + len(response)
            done += not prompt.history
            on_progress(done, len(wanted))
    return Distilled(answered, found, len(known) - len(short), tokens)


def _check(loaded: LoadedModel, output: Path, settings: DistilSettings) -> None:
    if output.suffix == ".gz":
        raise UsageError(f"{output}: a gzipped file cannot be resumed; write .jsonl, then gzip it")
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if longest > loaded.context_length:
        raise UsageError(
            f"--max-prompt-tokens and --max-new-tokens add up to {longest}, but the context of "
            f"{loaded.name} is {loaded.context_length} tokens"
        )
    if settings.min_temperature > settings.max_temperature:
        raise UsageError(
            f"--min-temperature {settings.min_temperature} is above --max-temperature "
            f"{settings.max_temperature}: give them the other way round"
        )


def _finished(output: Path) -> dict[tuple[str, ...], list[int]]:
    """What was answered, by the user's turns so far."""
    if not output.exists():
        return {}
    drop_torn_line(output)
    return {
        (*record.get(HISTORY, [])[::2], str(record.get("prompt"))): record.get("response_ids", [])
        for record in read_lines(output)
    }


class _LaterTurns:
    """Conversations go on: the target's own answer is what a later turn follows."""

    def __init__(self, tokenizer: Any, settings: DistilSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings

    def after(self, prompt: Prompt, response: Sequence[int]) -> Prompt | None:
        """The next turn; None: there is none, or it has become too long."""
        if not prompt.later or len(prompt.asked) >= self._settings.turns:
            return None
        answer = self._tokenizer.decode(response, skip_special_tokens=True)
        history = (*prompt.history, prompt.text, answer)
        text, *later = prompt.later
        template = self._settings.template
        ids = tuple(chat_prompt(self._tokenizer, [*history, text], template=template))
        if len(ids) > self._settings.max_prompt_tokens:
            return None
        return Prompt(text, prompt.task, prompt.source, ids, history, tuple(later))

    def unanswered(
        self, prompts: Sequence[Prompt], finished: Mapping[tuple[str, ...], Sequence[int]]
    ) -> Iterator[Prompt]:
        """Of each conversation the first turn that has no answer yet."""
        for first in prompts:
            prompt: Prompt | None = first
            while prompt is not None and prompt.asked in finished:
                prompt = self.after(prompt, finished[prompt.asked])
            if prompt is not None:
                yield prompt


class Waiting:
    """Prompts that wait; the next one is of like length: texts side by side waste no attention.

    The lengths go up and down: after the longest prompt at hand comes the one below it.
    """

    def __init__(self, prompts: Iterator[Prompt], at_hand: int) -> None:
        self._prompts = prompts
        self._at_hand = at_hand
        self._sorted: list[tuple[int, int, Prompt]] = []
        self._added = 0
        self._length, self._upwards = 0, True

    def add(self, prompt: Prompt | None) -> None:
        """Let a prompt wait, if there is one."""
        if prompt is not None:
            insort(self._sorted, (len(prompt.ids), self._added, prompt))
            self._added += 1

    def take(self) -> Prompt | None:
        """The next prompt to be answered; None: none waits now."""
        while len(self._sorted) < self._at_hand and (prompt := next(self._prompts, None)):
            self.add(prompt)
        if not self._sorted:
            return None
        index = bisect_left(self._sorted, (self._length,)) - (not self._upwards)
        if not 0 <= index < len(self._sorted):
            self._upwards = not self._upwards
            index = min(max(index, 0), len(self._sorted) - 1)
        self._length, _, prompt = self._sorted.pop(index)
        return prompt


def _answers(
    loaded: LoadedModel, waiting: Waiting, settings: DistilSettings
) -> Iterator[tuple[Prompt, Question, tuple[int, ...]]]:
    asked: dict[Question, Prompt] = {}

    def take() -> Question | None:
        prompt = waiting.take()
        if prompt is None:
            return None
        question = _question(prompt, settings)
        asked[question] = prompt
        return question

    answering = Answering(
        loaded,
        take,
        places=settings.batch,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
    )
    for question, response in answering:
        yield asked.pop(question), question, response


def _question(prompt: Prompt, settings: DistilSettings) -> Question:
    """The prompt with its own dice, whatever comes before it."""
    dice = np.random.default_rng([settings.seed, crc32("\0".join(prompt.asked).encode())])
    is_sampled = dice.random() < settings.sampled_share
    temperature = dice.uniform(settings.min_temperature, settings.max_temperature)
    if not is_sampled:
        return Question(prompt.ids)
    return Question(prompt.ids, temperature, tuple(dice.random(settings.max_new_tokens).tolist()))


def _line(prompt: Prompt, response: Sequence[int], temperature: float, template: str) -> bytes:
    record = {"task": prompt.task, "source": prompt.source, "prompt": prompt.text}
    before = {HISTORY: prompt.history} if prompt.history else {}
    asked_with = {TEMPLATE: template} if template != DEFAULT_TEMPLATE else {}
    chosen = {"temperature": round(temperature, 3)}
    return as_line({**record, **before, "response_ids": response, **chosen, **asked_with})
