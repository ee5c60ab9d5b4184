"""Why an engine failed, read from how it ended and what it wrote, and what is to be done about it."""

import re
from dataclasses import dataclass
from enum import StrEnum

from libs.common.contracts.engine_hosting import HostedEngine


class Remedy(StrEnum):
    """What may help. WAIT: somebody else is away. ROOM: nowhere is room for it now."""

    WAIT = "wait"
    ROOM = "room"
    LATER = "later"
    ELSEWHERE = "elsewhere"
    EASE = "ease"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class Failure:
    kind: str
    remedy: Remedy
    sentence: str


# In the order of how much they explain. The words are vLLM's, of `config`, `gpu_worker`, `kv_cache_utils`, argparse,
# and those of torch, NCCL and huggingface_hub that it lets through.
_SIGNS: tuple[tuple[str, str, Remedy, str], ...] = (
    (
        "bad_flag",
        r"error: (?:unrecognized arguments|argument )[^\n]*",
        Remedy.GIVE_UP,
        "vLLM does not know an argument",
    ),
    ("gated_model", r"GatedRepoError|gated repo[^\n]*", Remedy.GIVE_UP, "the model is gated: set HF_TOKEN on its node"),
    (
        "unknown_model",
        r"RepositoryNotFoundError|is not a local folder[^\n]*|Invalid repository ID or local directory[^\n]*",
        Remedy.GIVE_UP,
        "no such model",
    ),
    (
        "bad_option",
        r"User-specified max_model_len[^\n]*|max_num_batched_tokens \(\d+\) must be greater[^\n]*",
        Remedy.GIVE_UP,
        "vLLM refuses an option",
    ),
    (
        "not_supported",
        r"Model architectures [^\n]* are not supported[^\n]*|Total number of attention heads[^\n]*"
        r"|Unsupported speculative method[^\n]*|Target and draft model should have the same vocabulary size[^\n]*"
        r"|[^\n:]*draft_tensor_parallel_size[^\n]* (?:cannot be other value|must be the same)[^\n]*"
        r"|Model does not support EAGLE3[^\n]*|\w+ does not support \w+ with pipeline parallelism"
        r"|Decode context parallelism [^\n]*|[^\n:]*must be divisible by dcp_size[^\n]*"
        r"|EPLB (?:requires|currently only supports)[^\n]*|enable_expert_parallel must be True[^\n]*"
        r"|Specified KV sharing target layer [^\n]*",
        Remedy.GIVE_UP,
        "this vLLM does not serve that model so",
    ),
    ("card_in_use", r"Free memory on device[^\n]*", Remedy.ELSEWHERE, "others use the card"),
    ("ram_in_use", r"Available memory on node[^\n]*", Remedy.ELSEWHERE, "others use the machine's RAM"),
    (
        "cores",
        r"Not enough allowed NUMA nodes[^\n]*|doesn't match local world size[^\n]*",
        Remedy.ELSEWHERE,
        "the machine has no cores for every rank",
    ),
    ("no_cache", r"No available memory for the cache blocks[^\n]*", Remedy.EASE, "nothing is left for the KV cache"),
    (
        "few_states",
        r"max_num_seqs [^\n]* exceeds available Mamba cache blocks[^\n]*",
        Remedy.EASE,
        "the cache holds too few states",
    ),
    ("short_cache", r"KV cache is needed[^\n]*", Remedy.EASE, "the KV cache is too small for one request"),
    (
        "no_ray",
        r"Ray is not installed[^\n]*|Please install Ray[^\n]*",
        Remedy.GIVE_UP,
        "it was asked for over Ray",
    ),
    (
        "ray_incomplete",
        r"Ray has \d+ of [^\n]*|Ray's head at [^\n]*",
        Remedy.LATER,
        "not every node joined its Ray cluster",
    ),
    (
        "ray_placement",
        r"Cannot provide a placement group[^\n]*|is not included in a placement group[^\n]*",
        Remedy.LATER,
        "Ray found no place for every rank",
    ),
    ("port_taken", r"Address already in use", Remedy.LATER, "its port was taken meanwhile"),
    (
        "nccl",
        r"NCCL error[^\n]*|ncclUnhandled\w*|ncclRemoteError",
        Remedy.LATER,
        "its ranks did not find each other",
    ),
    (
        "download",
        r"couldn't connect to [^\n]*|Connection error[^\n]*|MaxRetryError|LocalEntryNotFoundError",
        Remedy.LATER,
        "the model could not be fetched",
    ),
)
_OUT_OF_MEMORY = re.compile(r"(?:CUDA|HIP) out of memory[^\n]*|OutOfMemoryError[^\n]*")
_RANK_KILLED = re.compile(r"Worker proc \S+ died unexpectedly \(exit code: -9\)")
_PLACE = re.compile(r"^\(\w+ pid=\d+\) [A-Z]+ [\d-]+ [\d:]+ (?=\[)")
_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Interrupt)\b(?::|$)")
_POINTS_ELSEWHERE = re.compile(
    r"EngineDeadError|Engine core initialization failed|Worker failed with error|Executor failed|ulimit"
)
_KILLED = -9
_QUOTED = 300


def classify(engine: HostedEngine) -> Failure:
    words = engine.last_words
    if found := _OUT_OF_MEMORY.search(words):
        return _out_of_memory(words, found.group())
    for kind, sign, remedy, meaning in _SIGNS:
        if found := re.search(sign, words):
            return Failure(kind, remedy, f"{meaning}: {found.group()[:_QUOTED]}")
    if engine.exit_code == _KILLED or _RANK_KILLED.search(words):
        return Failure("killed", Remedy.LATER, "it was killed; the machine may have run out of RAM")
    return Failure("crash", Remedy.LATER, f"{engine.reason or 'it ended'}: {_cause(words)[:_QUOTED]}".rstrip(": "))


def _cause(words: str) -> str:
    """The first error that does not only point at another one; what was said last where there is none."""
    lines = [line for line in words.splitlines() if line.strip()]
    errors = (_PLACE.sub("", line) for line in lines if _ERROR.search(line) and not _POINTS_ELSEWHERE.search(line))
    return next(errors, lines[-1] if lines else "")


def _out_of_memory(words: str, said: str) -> Failure:
    """Fewer sequences do not make weights smaller; what comes after them is. On processors vLLM says that otherwise."""
    if "Model loading took" not in words and "Warming up model" not in words:
        return Failure("oom_at_load", Remedy.ELSEWHERE, f"out of memory while it loaded: {said[:_QUOTED]}")
    if "KV cache size" not in words:
        return Failure("oom_at_profiling", Remedy.EASE, f"out of memory while it was profiled: {said[:_QUOTED]}")
    return Failure("oom_at_capture", Remedy.EASE, f"out of memory while graphs were captured: {said[:_QUOTED]}")
