"""``specbench distil`` and ``specbench train``: parse, call, show what came of it.

Flags that stand for a setting have the setting's name, so settings are filled by name.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from typer import Option
from typer.core import TyperGroup

from specbench_kangaroo.cli.completion import trainable_methods
from specbench_kangaroo.cli.options import Device, Model, Revision, Template, by_name
from specbench_kangaroo.machine.cache_folder import stderr_console
from specbench_kangaroo.machine.devices import DTYPES, default_device
from specbench_kangaroo.models.templates import template_named
from specbench_kangaroo.record.request import DEFAULT_MODEL, DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from specbench_kangaroo.training.train import Hooks, Validation

_ANY_METHOD = "method"

Prompts = Annotated[
    Path, typer.Argument(metavar="PROMPTS", help="JSON lines, also .gz, with 'turns' or 'prompt'.")
]
Answers = Annotated[Path, Option(help="JSON lines; what it has is not done again.", metavar="FILE")]
NewTokens = Annotated[int, Option(min=1, help="Per answer.", metavar="N")]
PromptTokens = Annotated[int, Option(min=1, help="Longer: left out.", metavar="N")]
BatchSize = Annotated[int, Option(min=1, help="Prompts answered at once.", metavar="N")]
Limit = Annotated[int | None, Option(min=1, help="The first N prompts.", metavar="N")]
Turns = Annotated[int, Option(min=1, help="Of a conversation at most.", metavar="N")]
Share = Annotated[float, Option(min=0, max=1, help="Answers that are sampled.", metavar="X")]
Temperature = Annotated[float, Option(min=0.01, help="Of sampled answers.", metavar="X")]
Seed = Annotated[int, Option(help="Where chance starts from.", metavar="N")]
Text = Annotated[
    list[Path],
    Option(help="By specbench distil, or prompts to be read only; repeatable.", metavar="FILE"),
]
HeldBack = Annotated[
    Path | None,
    Option(help="Answers to validate on.", show_default="a share of the text", metavar="FILE"),
]
Everywhere = Annotated[
    bool, Option("--everywhere", help="Learn from all positions, not from answers alone.")
]
Features = Annotated[Path, Option(help="Folder for the target's hidden states.", metavar="DIR")]
Weights = Annotated[Path, Option(help="The file of weights.", metavar="FILE")]
ExitLayer = Annotated[int | None, Option(help="Default: the method's choice.", metavar="N")]
Vocabulary = Annotated[int, Option(min=0, help="Frequent tokens; 0: all.", metavar="N")]
MaxTokens = Annotated[int, Option(min=1, help="Positions with loss, in all.", metavar="N")]
BatchTokens = Annotated[int, Option(min=1, help="Positions with loss a step.", metavar="N")]
Rate = Annotated[float, Option(min=0, help="At its highest.", metavar="X")]
Optimiser = Annotated[str, Option(help="muon or adamw.", metavar="NAME")]
Every = Annotated[int, Option(min=1, help="Positions with loss.", metavar="N")]
Patience = Annotated[int, Option(min=1, help="Validations without a gain.", metavar="N")]
TargetDtype = Annotated[
    str | None,
    Option(
        help="Of the target and of products with its LM head.",
        show_default="bfloat16 where that is far quicker, else the device's",
        metavar="NAME",
        autocompletion=lambda: list(DTYPES),
    ),
]
Resume = Annotated[bool, Option("--resume", help="Go on from OUTPUT.checkpoint.")]


def distil(  # noqa: PLR0913 (one parameter a flag)
    context: typer.Context,
    prompts: Prompts,
    *,
    output: Answers,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    template: Template = DEFAULT_TEMPLATE,
    max_new_tokens: NewTokens = 256,
    max_prompt_tokens: PromptTokens = 768,
    turns: Turns = 2,
    batch: BatchSize = 96,
    limit: Limit = None,
    sampled_share: Share = 0.5,
    min_temperature: Temperature = 0.7,
    max_temperature: Temperature = 1.0,
    seed: Seed = 0,
    dtype: TargetDtype = None,
    device: Device = None,
) -> None:
    """Let the target answer prompts: the text that its draft heads learn from.

    The text says with which --template it was asked for, so that training reads it in the same way.
    """
    template_named(template)  # before anything is loaded
    from specbench_kangaroo.models.load import load_model  # noqa: PLC0415
    from specbench_kangaroo.training import distil as distilling  # noqa: PLC0415 (imports torch)
    from specbench_kangaroo.training.features import quick_dtype  # noqa: PLC0415

    settings = by_name(distilling.DistilSettings, context.params)
    dtype = dtype or quick_dtype(device or default_device())
    loaded = load_model(model, revision=revision, dtype=dtype, device=device)
    with _Bar("prompts") as bar:
        done = distilling.distil(loaded, prompts, output, settings, on_progress=bar.advance_to)
    stderr_console().print(
        f"{done.answered} prompts answered ({done.tokens:,} tokens), {done.found} were in "
        f"{output}, {done.too_long} left out: over {max_prompt_tokens} tokens"
    )


class _MethodCommands(TyperGroup):
    """One command a trainable method, all with the same flags; found only when one is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        if ctx.resilient_parsing:  # a shell asks, and does not wait for torch
            return trainable_methods()
        from specbench_kangaroo.training.trainable import trainable_names  # noqa: PLC0415 (imports torch)

        return trainable_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if not ctx.resilient_parsing:
            from specbench_kangaroo.training.trainable import trainable  # noqa: PLC0415

            trainable(cmd_name)  # a wrong name is an error that lists the right ones
        command = copy.copy(self.commands[_ANY_METHOD])
        command.name = cmd_name
        return command


train = typer.Typer(cls=_MethodCommands, no_args_is_help=True, help="Fit a draft head to text.")


@train.command(_ANY_METHOD)
def train_method(  # noqa: PLR0913 (one parameter a flag)
    context: typer.Context,
    *,
    text: Text,
    features: Features,
    output: Weights,
    held_back: HeldBack = None,
    everywhere: Everywhere = False,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    exit_layer: ExitLayer = None,
    draft_vocabulary: Vocabulary = 8192,
    max_tokens: MaxTokens = 20_000_000,
    batch_tokens: BatchTokens = 1024,
    optimiser: Optimiser = "muon",
    learning_rate: Rate = 2e-2,
    validate_every: Every = 500_000,
    patience: Patience = 6,
    seed: Seed = 0,
    dtype: TargetDtype = None,
    device: Device = None,
    resume: Resume = False,
) -> None:
    """Fit this method's draft head to a target's own answers; the best weights are kept."""
    from specbench_kangaroo.models.load import load_model  # noqa: PLC0415
    from specbench_kangaroo.training import fit  # noqa: PLC0415 (imports torch)
    from specbench_kangaroo.training.features import quick_dtype  # noqa: PLC0415
    from specbench_kangaroo.training.train import TrainSettings  # noqa: PLC0415

    settings = by_name(TrainSettings, context.params)
    plan = by_name(fit.FitPlan, context.params, texts=tuple(text), settings=settings)
    dtype = dtype or quick_dtype(device or default_device())
    loaded = load_model(model, revision=revision, dtype=dtype, device=device)
    with _Bar("tokens") as bar:
        state = fit.fit(str(context.info_name), loaded, plan, hooks=bar.hooks(max_tokens))
    stderr_console().print(
        f"{output}: agreement {state.best.agreement:.4f} after {state.best.tokens_seen:,} of "
        f"{state.tokens_seen:,} tokens"
    )


class _Bar(Progress):
    """One bar that goes through the stages of a long job, on standard error; it goes when done.

    Args:
        unit: what it counts.
    """

    def __init__(self, unit: str) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} " + unit),
            _Rate(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        console = stderr_console()
        super().__init__(*columns, console=console, transient=True, speed_estimate_period=600)
        self.stage("")

    def stage(self, name: str) -> None:
        """Begin a stage whose length is not known yet."""
        for task in self.task_ids:
            self.remove_task(task)
        self.add_task(name, total=None, note="")

    def advance_to(self, done: int, total: int) -> None:
        """Show how far the stage is."""
        self.update(self.task_ids[0], completed=done, total=total)

    def hooks(self, max_tokens: int) -> Hooks:
        """What shows a training; every validation leaves a line behind."""
        from specbench_kangaroo.training.train import Hooks  # noqa: PLC0415

        def validated(validation: Validation) -> None:
            note = f"agreement {validation.agreement:.4f}, loss {validation.loss:.3f}"
            self.update(self.task_ids[0], note=note)
            self.console.print(f"{validation.tokens_seen:>13,} tokens: {note}")

        return Hooks(
            on_stage=self.stage,
            on_features=self.advance_to,
            on_tokens=lambda seen: self.advance_to(seen, max_tokens),
            on_validation=validated,
        )


class _Rate(ProgressColumn):
    """This run's own: rich leaves out the first sample, which holds what was there before."""

    def render(self, task: Task) -> str:
        return f"{task.speed:,.0f}/s" if task.speed else ""
