"""A bench that needs no download: a tiny random model, a tokenizer of 24 words, stub methods.

A stub drafts what its name says: it is shown vanilla's answer to the prompt and proposes from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specbench_kangaroo.bench.config import entries_of
from specbench_kangaroo.bench.questions import Question, QuestionSet
from specbench_kangaroo.bench.registry import method_class, method_names
from specbench_kangaroo.bench.setup import Bench, sampling_of
from specbench_kangaroo.engine import method
from specbench_kangaroo.engine.method import (
    DecodesItself,
    Draft,
    Method,
    PlainMethod,
    Session,
    Verified,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.record.request import Decoding, EntryChoice, Request, TargetChoice
from specbench_methods.vanilla import Vanilla

from .models import CONTEXT, VOCABULARY, target

FAMILY = "llama-gqa-tied"
WORDS = ["<pad>", "<bos>", "<eos>", "u", "a", *(f"w{i}" for i in range(5, VOCABULARY))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ' ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
)
SAVED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
QUESTIONS = (
    Question(1, "writing", ("w5 w9 w14 w7", "w8 w8")),
    Question(2, "qa", ("w11 w6",)),
    Question(3, "rag", ("w13 w7 w12 w20 w19",)),
)
TOO_LONG = Question(9, "qa", (" ".join(["w6"] * CONTEXT), "w7"))


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE
    )


def save_model(folder: Path) -> Path:
    """A tiny model with its tokenizer as a folder for --model."""
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SAVED)).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def save_questions(path: Path, *, count: int = 1) -> Path:
    """Conversations of two turns in the words of the tiny tokenizer."""
    lines = [
        {"question_id": i, "category": "writing", "turns": [f"w{5 + i % 19} w7", "w8"]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def drafting_methods() -> list[str]:
    """Every registered method that our loop asks for drafts; the others decode by themselves."""
    return [name for name in method_names() if not issubclass(method_class(name), DecodesItself)]


class Stub(PlainMethod):
    """Drafts ``depth`` tokens: the target's own greedy continuation, wrong from ``right`` on."""

    weights: Mapping[str, Any] = {}

    def __init__(self, model: Target, *, depth: int = 3, right: int = 3) -> None:
        self.options = method.MethodOptions()
        self.max_rows = 1 + depth
        self.prompts: list[tuple[int, ...]] = []  # every prompt that it was given
        self.model, self.depth, self.right = model, depth, right

    @classmethod
    def load(cls, target: Target, options: method.MethodOptions) -> Self:
        del options
        return cls(target)

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> StubDrafter:
        del session, output
        self.prompts.append(tuple(prompt.tolist()))
        return StubDrafter(self, prompt.tolist())


class StubDrafter:
    """One text of a stub."""

    def __init__(self, stub: Stub, prompt: list[int]) -> None:
        self.stub, self.ids = stub, prompt

    def propose(self, root: int, budget: int) -> Draft:
        rows, model = [root], self.stub.model
        for depth in range(min(self.stub.depth, budget)):
            ids = torch.tensor([*self.ids, *rows])
            logits = model.prefill(ids, model.new_cache(len(ids))).logits[0]
            token = int(logits.argmax())
            rows.append(token if depth < self.stub.right else (token + 1) % VOCABULARY)
        self._rows = rows
        return Draft(TokenTree.chain(torch.tensor(rows)))

    def observe(self, verified: Verified) -> None:
        self.ids += [self._rows[row] for row in verified.nodes]


class Raises(Stub):
    """Fails on every conversation that begins with the word w13."""

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> StubDrafter:
        if prompt[1] == WORDS.index("w13"):
            raise RuntimeError("w13 is bad luck")
        return super().start(session, prompt, output)


class Cheats(Stub):
    """Lets the target score another root than the last token, so that its outputs go astray."""

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> StubDrafter:
        return Cheat(self, super().start(session, prompt, output).ids)


class Cheat(StubDrafter):
    def propose(self, root: int, budget: int) -> Draft:
        return super().propose((root + 1) % VOCABULARY, budget)


class Interrupts(Stub):
    """The person at the keyboard presses Ctrl-C in the generation number ``at``."""

    at = 3

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> StubDrafter:
        drafter = super().start(session, prompt, output)
        if len(self.prompts) == self.at:
            raise KeyboardInterrupt
        return drafter


def make_bench(
    methods: Mapping[str, Method] | None = None,
    *,
    questions: Sequence[Question] = QUESTIONS,
    eos: frozenset[int] = frozenset(),
    **settings: Any,
) -> Bench:
    """A bench of vanilla and ``methods`` on the tiny model, in float64."""
    model = target(FAMILY)
    wanted = Decoding(**{"max_new_tokens": 12, "warmup": 0} | settings)
    loaded = LoadedModel(
        name="tiny",
        model=model.model,
        tokenizer=make_tokenizer(),
        dtype="float64",
        device="cpu",
        sha256="00",
        revision=None,
        eos_token_ids=eos,
        context_length=CONTEXT,
    )
    names = [name for name in methods or () if name != "vanilla"]
    entries = tuple(EntryChoice(method=name) for name in names)
    return Bench(
        request=Request(target=TargetChoice(model="tiny"), entries=entries, decoding=wanted),
        entries=entries_of(entries),
        loaded=loaded,
        target=model,
        questions=QuestionSet("three", "11", tuple(questions)),
        methods={"vanilla": Vanilla(method.MethodOptions()), **(methods or {})},
        sampling=sampling_of(wanted),
    )
