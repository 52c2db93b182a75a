"""What PEFT's own tests check of a model with adapters: merging, switching, mixing, swapping, saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from test_contract import ids, logits, tiny_base
from torch import Tensor

FOUR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
KINDS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}


def config(**changes: object) -> LoraConfig:
    """Of an adapter whose B is random, so that it changes the output."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": FOUR, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return LoraConfig(**settings | changes)


def adapted(**changes: object) -> PeftModel:
    torch.manual_seed(5)
    return get_peft_model(tiny_base(), config(**changes)).eval()


def write(folder: Path, seed: int) -> Tensor:
    """Another adapter in a folder, and its logits."""
    torch.manual_seed(seed)
    model = get_peft_model(tiny_base(), config()).eval()
    model.save_pretrained(folder, save_embedding_layers=False)
    return logits(model)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_unmerged_and_disabled(kind: str) -> None:
    base, model = logits(tiny_base()), adapted(**KINDS[kind])
    live = logits(model)
    assert (live - base).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), live)
    model.merge_adapter()
    close(logits(model), live)
    with model.disable_adapter():  # PEFT unmerges for it
        close(logits(model), base)
    model.unmerge_adapter()
    close(logits(model), live)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    close(logits(merged), live)
    restored = adapted(**KINDS[kind]).unload()
    assert torch.equal(logits(restored), base)


def test_several_adapters(tmp_path: Path) -> None:
    expected = {name: write(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    model = PeftModel.from_pretrained(tiny_base(), tmp_path / "one", adapter_name="one").eval()
    model.load_adapter(tmp_path / "two", "two")
    for name in ("two", "one"):
        model.set_adapter(name)
        assert torch.equal(logits(model), expected[name])
    both = model.generate(ids(), adapter_names=["one", "two"], max_new_tokens=3, do_sample=False, eos_token_id=None)
    for row, name in enumerate(("one", "two")):  # a batch with an adapter for each row
        model.set_adapter(name)
        alone = model.generate(ids()[row : row + 1], max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert torch.equal(both[row], alone[0])
    model.delete_adapter("two")
    assert list(model.peft_config) == ["one"]


@pytest.mark.parametrize("combination", ["cat", "linear", "svd", "ties", "dare_linear", "magnitude_prune"])
def test_weighted_adapters(combination: str, tmp_path: Path) -> None:
    one, _ = (write(tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    model = PeftModel.from_pretrained(tiny_base(), tmp_path / "one", adapter_name="one").eval()
    model.load_adapter(tmp_path / "two", "two")
    more = {"density": 0.9} if combination in ("ties", "dare_linear", "magnitude_prune") else {}
    weights = [1.0, 0.0] if combination in ("cat", "svd") else [0.5, 0.5]
    model.add_weighted_adapter(["one", "two"], weights, "mix", combination_type=combination, **more)
    model.set_adapter("mix")
    found = logits(model)
    assert found.isfinite().all()
    if weights[1]:
        assert (found - one).abs().max() > 1e-3
    else:  # all of the first, nothing of the second
        close(found, one)


def test_a_mixed_model_has_both_adapters_at_once(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / name, seed)
    mixed = PeftMixedModel.from_pretrained(tiny_base(), str(tmp_path / "one"), adapter_name="one").eval()
    mixed.load_adapter(str(tmp_path / "two"), "two")
    mixed.set_adapter(["one", "two"])
    summed = PeftModel.from_pretrained(tiny_base(), tmp_path / "one", adapter_name="one").eval()
    summed.load_adapter(tmp_path / "two", "two")
    summed.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum", combination_type="cat")
    summed.set_adapter("sum")
    close(logits(mixed), logits(summed))


def test_hotswap_gives_the_other_adapter_in_place(tmp_path: Path) -> None:
    write(tmp_path / "one", 0)
    two = write(tmp_path / "two", 1)
    model = PeftModel.from_pretrained(tiny_base(), tmp_path / "one").eval()
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # room for adapters of a higher rank
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    hotswap_adapter(model, str(tmp_path / "two"), "default", torch_device="cpu")
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == places
    close(logits(model), two)


def test_auto_class_finds_base_and_adapter(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "base")
    model = get_peft_model(tiny_base(), config(base_model_name_or_path=str(tmp_path / "base")))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    assert torch.equal(logits(found), logits(model.eval()))


def test_the_model_s_own_methods_of_adapters(tmp_path: Path) -> None:
    """Those of transformers, without PEFT's wrapper."""
    expected = write(tmp_path, 0)
    model = tiny_base()
    model.load_adapter(str(tmp_path))
    assert torch.equal(logits(model.eval()), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny_base()))
