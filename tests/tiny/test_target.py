"""The target: layers by range on our cache are the model's own forward pass."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from specbench_kangaroo.engine import layers
from specbench_kangaroo.engine import linear as packed
from specbench_kangaroo.engine.target import Needs, Target
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.machine.devices import probe_dtype
from specbench_kangaroo.record.errors import UsageError

from .models import FAMILIES, VOCABULARY, random_model, target

IDS = torch.tensor([5, 9, 3, 14, 7, 11, 3, 14, 20, 1, 8])


@pytest.mark.parametrize("family", FAMILIES)
def test_shallow_token_by_token_then_deep_at_once_is_one_forward_pass(family: str) -> None:
    model = random_model(family)
    model.set_attn_implementation("eager")  # transformers 5.17 forgets Gemma 2's caps in others
    with torch.inference_mode():
        wanted = model(IDS[None], use_cache=False).logits[0]
        found_target = target(family)
        cache = found_target.new_cache(len(IDS))
        prompt = 4
        found_target.prefill(IDS[:prompt], cache)
        rest = IDS[prompt:]
        states = []
        for row in range(len(rest)):
            place = found_target.rows(cache.length, chain_parents(row + 1), first=row)
            embedded = found_target.embed(rest[row : row + 1])
            states.append(found_target.layers(embedded, 0, 2, place, cache))
        place = found_target.rows(cache.length, chain_parents(len(rest)))
        deep = found_target.layers(torch.cat(states), 2, found_target.n_layers, place, cache)
        found = found_target.output(deep).logits
    # transformers' norms round to float32 even in a float64 model, ours do not.
    torch.testing.assert_close(found, wanted[prompt:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith(("gemma", "olmo"))])
def test_a_lean_layer_does_what_the_module_does(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = target(family)
    assert isinstance(lean._layers[0], layers.LeanLayer)
    monkeypatch.setattr("specbench_kangaroo.engine.target.is_llama_shaped", lambda _: False)
    plain = Target(random_model(family))
    assert isinstance(plain._layers[0], layers.ModuleLayer)
    with torch.inference_mode():
        needs = Needs(layers=(1, 3))
        outputs = [t.prefill(IDS, t.new_cache(len(IDS)), needs) for t in (lean, plain)]
    for layer in (1, 3):
        states = [output.hidden[layer] for output in outputs]
        torch.testing.assert_close(*states, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-5)


def test_a_lean_layer_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check against the model's own logits decides, not the class's name."""
    right = layers.LeanLayer._normed

    def wrong(self: layers.LeanLayer, rotated: torch.Tensor) -> torch.Tensor:
        return right(self, rotated) * 1.01

    monkeypatch.setattr(layers.LeanLayer, "_normed", wrong)
    assert isinstance(Target(random_model("qwen3-qknorm"))._layers[0], layers.ModuleLayer)


def test_a_family_that_cannot_be_run_by_range_is_refused_by_name() -> None:
    model = random_model("llama-gqa-tied")
    original = model.forward  # say, logits that are scaled after the head

    def forward(*args: object, **kwargs: object) -> object:
        output = original(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = forward
    with pytest.raises(UsageError, match="LlamaForCausalLM cannot be run layer by layer"):
        Target(model)


def test_a_model_without_decoder_stack_is_refused_by_name() -> None:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config)
    with pytest.raises(UsageError, match="GPT2LMHeadModel cannot be run layer by layer"):
        Target(model.eval())


def test_float32_with_prepacked_products_is_close_to_float64() -> None:
    exact, fast = target("llama-gqa-tied"), target("llama-gqa-tied", torch.float32)
    with torch.inference_mode():
        logits = [t.prefill(IDS, t.new_cache(len(IDS))).logits.double() for t in (exact, fast)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_the_cache_is_sized_by_need_not_by_the_models_maximum() -> None:
    assert target("llama-gqa-tied").new_cache(9).committed(0).keys.untyped_storage().nbytes() == (
        2 * 4 * 2 * 9 * 8 * 8  # keys and values, layers, heads, slots, head size, bytes
    )


def test_weight_share_falls_from_one_as_layers_are_left_out() -> None:
    shares = [target("llama-gqa-tied").weight_share(layer) for layer in range(5)]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0, "the head is always read"


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 32, 33, 300, 512])
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_prepacked_products_are_the_plain_ones(rows: int, dtype: str, close: float) -> None:
    if not probe_dtype(dtype, "cpu"):
        pytest.skip(f"{dtype} products do not work on this processor")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    weight, bias = torch.randn(48, 32).to(kind), torch.randn(48).to(kind)
    inputs, residual = torch.randn(rows, 32).to(kind), torch.randn(rows, 48).to(kind)
    linear = packed.Linear(weight, bias)
    assert linear._packed == packed.can_prepack("cpu", kind)
    wanted = inputs.float() @ weight.float().T + bias.float()
    torch.testing.assert_close(linear(inputs).float(), wanted, rtol=1e-2 * close, atol=close)
    summed = linear.add_to(residual, inputs).float()
    torch.testing.assert_close(summed, residual.float() + wanted, rtol=1e-2 * close, atol=close)
