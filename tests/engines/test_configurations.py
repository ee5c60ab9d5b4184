"""Configurations that tests write down, against the defaults of the classes that stand for the same models."""

import json
import subprocess

from tests.engines.conftest import ENVIRONMENT
from tests.unit.inference.planner.test_facts import GEMMA_3N, KIMI_LINEAR

PRINTED = """
import json, sys
from transformers import Gemma3nTextConfig
from transformers.models.kimi_linear.configuration_kimi_linear import KimiLinearConfig

gemma, kimi = Gemma3nTextConfig(), KimiLinearConfig()
names = json.load(sys.stdin)
told = [{name: getattr(made, name) for name in each} for made, each in zip((gemma, kimi), names)]
json.dump(told, sys.stdout)
"""

LINEAR = {
    "num_heads": "linear_num_heads",
    "head_dim": "linear_head_dim",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
"""What the checkpoint says of its linear layers, in the words of the class."""

OF_THE_CHECKPOINT = {"architectures", "first_k_dense_replace", "linear_attn_config", "mla_use_nope"}


def test_configurations_written_down_are_what_transformers_makes_of_these_models():
    gemma = dict(GEMMA_3N["text_config"])  # type: ignore[call-overload]
    linear = {LINEAR[name]: KIMI_LINEAR["linear_attn_config"][name] for name in LINEAR}  # type: ignore[index]
    kimi = {name: value for name, value in KIMI_LINEAR.items() if name not in OF_THE_CHECKPOINT} | linear
    program = [ENVIRONMENT / "bin" / "python", "-c", PRINTED]
    asked = json.dumps([list(gemma), list(kimi)])
    done = subprocess.run(program, input=asked, capture_output=True, text=True, timeout=120, check=True)

    assert json.loads(done.stdout) == [gemma, kimi]
