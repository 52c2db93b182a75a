"""Which of PEFT's settings for LoRA keep to the contract: the base stays as it is, and the adapter is all there is.

Those that are left out here are refused by name. `tests/unit/lora/test_contract.py` holds the others to it.
"""

from __future__ import annotations

from dataclasses import fields

from peft import LoraConfig, PeftModel

from kyon_pl.errors import SettingError

_KEPT = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
        # without a say in what is computed here
        *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
        *("ensure_weight_tying", "loftq_config"),  # PEFT empties the last one itself, unless it initializes with it
    }
)
_KEPT_STARTS = (True, "gaussian", "orthogonal")

_NEEDS_DATA = "it starts from what the base computes on data, which is not done here"
_CHANGES_BASE = "it changes the base's weights, so that the adapter would not fit the published ones"
_WHY_NOT = {
    "alora_invocation_tokens": "it works behind certain tokens only, and cannot be merged",
    "arrow_config": "it mixes other adapters, which are not there",
    "bias": "it would train weights of the base",
    "corda_config": _NEEDS_DATA,
    "eva_config": _NEEDS_DATA,
    "kasa_config": _CHANGES_BASE,
    "layer_replication": "it makes another model out of the base",
    "lora_bias": "most layers of ChatGLM2 have no bias that it could be merged into",
    "lora_ga_config": _NEEDS_DATA,
    "megatron_config": "the base is no model of Megatron's",
    "modules_to_save": "it would train weights of the base",
    "monteclora_config": "what it computes is drawn at random",
    "target_parameters": "it is for weights outside of layers, and ChatGLM2 has none to adapt",
    "trainable_token_indices": "it would train weights of the base's embedding",
    "use_bdlora": "it is for serving over several devices, and does not merge into fused layers as a whole",
    "use_qalora": "it does nothing unless the base is quantized by GPTQ",
    "velora_config": "its gradients are approximations",
}
_WHY_NOT_START = {
    "False": "A and B would be random, so that training would not start from the base",
    "corda": _NEEDS_DATA,
    "eva": _NEEDS_DATA,
    "lora_ga": _NEEDS_DATA,
    "loftq": _CHANGES_BASE,
    "mica": "it does not train B, and a checkpoint holds what is trained",
    "olora": _CHANGES_BASE,
    "pissa": _CHANGES_BASE,
}


def refused_setting(config: LoraConfig) -> tuple[str, str] | None:
    """The first of PEFT's settings that breaks the contract.

    Returns:
        its key, and what was found and why it is refused; None if there is none.
    """
    usual = type(config)()
    for key in (field.name for field in fields(config)):
        value = getattr(config, key)
        if key not in _KEPT and value != getattr(usual, key):
            return key, f"{value!r}: {_WHY_NOT.get(key, 'a setting of PEFT that kyon_pl has not been tested with')}"
    start = config.init_lora_weights
    if start not in _KEPT_STARTS:
        why = _WHY_NOT_START.get(str(start).partition("_niter_")[0], "kyon_pl has not been tested with it")
        return "init_lora_weights", f"{start!r}: {why}"
    return None


def check_family(config: LoraConfig) -> None:
    """Refuse a kind of LoRA that changes the base, needs data, or is none that merges.

    Raises:
        SettingError: it names the key.
    """
    if refused := refused_setting(config):
        fix = "Leave it out; use_rslora, use_dora, rank_pattern and init_lora_weights: gaussian are among what works"
        raise SettingError(f"model.lora.{refused[0]}", refused[1], fix)


def check_targets(model: PeftModel) -> None:
    """Refuse an adapter on the embedding, which starts the other way round: its B is random, and its A is zero.

    Raises:
        SettingError: there is one.
    """
    names = [name for name, _ in model.named_parameters() if ".lora_embedding_" in name]
    if names:
        found = f"it names the embedding ({names[0].partition('.lora_')[0].removeprefix('base_model.model.')})"
        raise SettingError(
            "model.lora.target_modules", found, "Name linear layers, or write all-linear for all of them"
        )
