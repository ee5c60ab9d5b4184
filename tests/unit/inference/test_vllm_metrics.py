"""What the metrics of an engine tell of its cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.inference.vllm_metrics import ToldCache, told_cache

LABELS = (
    'block_size="16",cache_dtype="auto",engine="0",gpu_memory_utilization="0.92",kv_offloading_size="None",'
    'num_gpu_blocks="27646",prefix="a\\"b"'
)
PAGE = f"""# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{{LABELS}}} 1.0
vllm:num_requests_running{{engine="0",model_name="m"}} 0.0
"""


def test_the_blocks_of_a_cache_are_told():
    assert told_cache(PAGE) == ToldCache(blocks=27646, block_tokens=16, utilization=0.92)


def test_of_several_engines_the_one_with_least_cache_counts():
    other = PAGE.replace('engine="0"', 'engine="1"').replace("27646", "1000")

    assert told_cache(PAGE + other) == ToldCache(blocks=1000, block_tokens=16, utilization=0.92)


@pytest.mark.parametrize(
    "page",
    [
        "",
        PAGE.replace("27646", "None"),
        PAGE.replace("27646", "0"),
        PAGE.replace("27646", "-5"),
        PAGE.replace("cache_config_info{", "other{"),
    ],
)
def test_metrics_without_blocks_tell_nothing(page: str):
    assert told_cache(page) is None


def test_what_is_not_a_number_is_left_out():
    page = PAGE.replace('"0.92"', '"most"').replace('block_size="16"', 'block_size="None"')

    assert told_cache(page) == ToldCache(blocks=27646)


@given(text=st.text(max_size=200), labels=st.text(alphabet='ab_="\\\\,0159.None', max_size=60))
def test_whatever_an_engine_writes_is_read_or_left(text: str, labels: str):
    for page in (
        text,
        f"vllm:cache_config_info{{{labels}}} 1.0",
        f'vllm:cache_config_info{{num_gpu_blocks="{labels}"}} 1',
    ):
        found = told_cache(page)
        assert found is None or found.blocks > 0
