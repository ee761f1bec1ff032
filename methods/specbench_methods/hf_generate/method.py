"""transformers' own ``generate``: what a user would run without this package.

It decodes by itself, so its answers have tokens and times, but no steps and no passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import GenerationConfig

from specbench_kangaroo.engine.method import MethodOptions, PlainMethod, option
from specbench_kangaroo.engine.sampling import Sampler
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.hf_generate.model import FirstToken, seeded, sharing_weights
from specbench_methods.shared.draft_models import load_beside, write_draft_model


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions(MethodOptions):
    """As ``generate`` names them, with its own defaults."""

    prompt_lookup_num_tokens: int | None = option(
        None, "draft so many tokens by prompt lookup", minimum=1
    )
    max_matching_ngram_size: int = option(
        2, "the longest n-gram that prompt lookup looks for", minimum=1
    )
    assistant_model: str | None = option(None, "the model that drafts: short name, folder, hub id")
    num_assistant_tokens: int = option(
        20, "the most tokens that the assistant drafts in a step", minimum=1
    )
    assistant_confidence_threshold: float = option(
        0.4, "the assistant stops after a token less likely; adapted where scikit-learn is"
    )


class HfGenerate(PlainMethod):
    """transformers' own generate: plain, with prompt lookup, or with an assistant model."""

    Options: ClassVar[type[MethodOptions]] = GenerateOptions

    def __init__(
        self, target: Target, options: GenerateOptions, loaded: LoadedModel | None
    ) -> None:
        super().__init__(options)
        self._model = sharing_weights(target, who="hf_generate")
        self._model.generation_config = GenerationConfig()  # fills what a call leaves open
        self._assistant = None if loaded is None else _assistant(loaded, target, options)
        self._drafts = loaded is not None or options.prompt_lookup_num_tokens is not None
        if loaded is not None:
            self.weights: Mapping[str, Any] = {"sha256": loaded.sha256, "model": loaded.name}

    @classmethod
    def load(cls, target: Target, options: GenerateOptions) -> Self:
        """Load the assistant as the target was loaded; see :class:`Method`."""
        name = options.assistant_model
        if None not in (options.prompt_lookup_num_tokens, name):
            raise UsageError(
                "hf_generate drafts by prompt_lookup_num_tokens or by assistant_model, not by both"
            )
        return cls(target, options, None if name is None else load_beside(target, name))

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[GenerateOptions]:
        """Every kind of draft; the assistant is the target's own first layers."""
        model = write_draft_model(target, folder / "assistant", layers=max(1, target.n_layers // 2))
        return [
            GenerateOptions(),
            GenerateOptions(prompt_lookup_num_tokens=3),
            GenerateOptions(assistant_model=model, num_assistant_tokens=3),
            GenerateOptions(assistant_model=model, assistant_confidence_threshold=0.0),
        ]

    def generate(
        self,
        prompt: Sequence[int],
        *,
        budget: int,
        eos: frozenset[int],
        sampler: Sampler | None,
        on_first_token: Callable[[], None],
    ) -> Sequence[int]:
        """See :class:`DecodesItself`; where it drafts, the first pass may verify a draft too."""
        ids = torch.tensor([prompt], device=self._model.device)  # [1, P]
        with seeded(sampler, ids.device):
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_config(self.options, budget, eos, sampler),
                assistant_model=self._assistant,
                **FirstToken(on_first_token, drafts=self._drafts).arguments,
            )  # [1, P + N]
        answer: list[int] = output[0, len(prompt) :].tolist()
        return answer


def _config(options: Any, budget: int, eos: frozenset[int], sampler: Sampler | None) -> Any:
    """A fresh one: of the model's own a penalty, say, would make other tokens."""
    settings: dict[str, Any] = {}
    if sampler is not None:
        how = sampler.sampling
        settings |= {"temperature": how.temperature, "top_p": how.top_p}
        settings["top_k"] = how.top_k or 0  # unless told, transformers takes 50
    if options.prompt_lookup_num_tokens is not None:
        settings["prompt_lookup_num_tokens"] = options.prompt_lookup_num_tokens
        settings["max_matching_ngram_size"] = options.max_matching_ngram_size
    return GenerationConfig(
        do_sample=sampler is not None,
        max_new_tokens=budget,
        eos_token_id=sorted(eos) or None,
        pad_token_id=0,  # nothing is padded; without it some releases warn at every call
        **settings,
    )


def _assistant(loaded: LoadedModel, target: Target, options: GenerateOptions) -> Any:
    """The assistant, which reads how to draft from its own config and not from the call's."""
    model: Any = loaded.model
    size, wanted = model.config.vocab_size, target.config.vocab_size
    if size != wanted:  # generate would translate texts between two tokenizers instead
        raise UsageError(
            f"generate takes no assistant of {size} token ids for a target of {wanted}: choose "
            "another hf_generate.assistant_model"
        )
    model.generation_config = GenerationConfig(
        num_assistant_tokens=options.num_assistant_tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=options.assistant_confidence_threshold,
    )
    return model


METHOD = HfGenerate
