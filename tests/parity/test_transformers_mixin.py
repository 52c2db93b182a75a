"""transformers' own common tests of models, run on ChatGLM2, as its source distribution ships them.

The wheel has none. `pip download --no-deps --no-binary :all: transformers==VERSION`, unpack it, and set
`KYON_TRANSFORMERS_TESTS` to its folder `tests`; `parameterized` must be installed. The tests of generation are not in
that folder: tests/unit/chatglm2/test_model_contract.py has what they check.

As a script it runs them: `python tests/parity/test_transformers_mixin.py`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from published_layout import tiny_config

from kyon_pl.chatglm2 import ChatGLM2Config, ChatGLM2ForCausalLM
from kyon_pl.chatglm2.modeling import ChatGLM2Model

FOLDER = os.environ.get("KYON_TRANSFORMERS_TESTS")
PACKAGE = "transformers_tests"
NOT_SHIPPED = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}

# tests that do not apply, and why; transformers itself skips those for other kinds of models and for GPUs
SKIPPED = {
    "test_generation_tester_mixin_inheritance": "the tests of generation are not shipped",
    "test_causal_lm_loss_honors_shift_labels": "forward takes no shift_labels, and says so (TypeError)",
}


def shipped_mixin(folder: Path) -> type:
    """`ModelTesterMixin` of that folder; what the folder lacks is empty."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name, mixin in NOT_SHIPPED.items():
        module = types.ModuleType(f"{PACKAGE}.{name}")
        setattr(module, mixin, type(mixin, (), {}))
        outer = f"{PACKAGE}.{name.partition('.')[0]}"
        sys.modules |= {outer: types.ModuleType(outer), module.__name__: module}
    found: type = importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin
    return found


class Tester:
    """The tiny model and a batch, under the names that the mixin reads."""

    batch_size, seq_length, encoder_seq_length, is_training = 3, 7, 7, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def get_config(self) -> ChatGLM2Config:
        return tiny_config()

    def prepare_config_and_inputs_for_common(self) -> tuple[ChatGLM2Config, dict[str, torch.Tensor]]:
        ids = torch.randint(3, 96, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main(folder: Path) -> None:
    """Run them; the status is 1 if one fails."""
    # the mixin knows by these names which classes have a loss; those of transformers' own models stand there
    MODEL_MAPPING_NAMES["chatglm"] = ChatGLM2Model.__name__
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["chatglm"] = ChatGLM2ForCausalLM.__name__

    def set_up(case: Any) -> None:
        case.model_tester = Tester()
        if reason := SKIPPED.get(case._testMethodName):
            case.skipTest(reason)

    own = {"all_model_classes": (ChatGLM2Model, ChatGLM2ForCausalLM), "setUp": set_up}
    case = type("Common", (shipped_mixin(folder), unittest.TestCase), own)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    sys.exit(not result.wasSuccessful())


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="KYON_TRANSFORMERS_TESTS is not set")
def test_common_tests_of_transformers() -> None:
    pytest.importorskip("parameterized")
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]
    assert "OK (skipped=" in run.stderr


if __name__ == "__main__":
    main(Path(str(FOLDER)))
