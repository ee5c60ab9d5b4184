"""A process of an instance as a file for Docker Compose, v1.29 and v2."""

from libs.common.contracts.base import JsonObject
from libs.common.contracts.vllm_instances import ComposeFile, EngineChoice, InstancePart
from libs.common.errors import Conflict

IMAGE = "vllm/vllm-openai:latest"
SHARED_MEMORY = "16g"
MODELS = "models"
_OF_THE_MACHINE = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def compose_file(name: str, engine: EngineChoice, part: InstancePart) -> ComposeFile:
    """A container sees only its GPUs, so that which of the machine's they are is not told. Raises `Conflict`."""
    if engine is not EngineChoice.VLLM or not part.gpu_uuids:
        raise Conflict(f"{name} is not vLLM on GPUs: there is no image to name for it")
    if part.ray:
        raise Conflict(f"{name} runs over Ray, which the image does not begin by itself: there is no such file for it")
    environment = {name: value for name, value in part.environment.items() if name not in _OF_THE_MACHINE}
    spread = "--nnodes" in part.arguments
    service: JsonObject = {
        "image": IMAGE,
        "command": [*part.arguments, "--host", "0.0.0.0", "--port", "8000"],  # published on loopback
        "environment": {**environment, "HF_HOME": f"/{MODELS}"},
        "volumes": [f"{MODELS}:/{MODELS}"],
        "shm_size": SHARED_MEMORY,
        "restart": "unless-stopped",
    }
    service |= {"network_mode": "host"} if spread else {"ports": ["127.0.0.1:8000:8000"]}
    device: JsonObject = {"driver": "nvidia", "device_ids": [*part.gpu_uuids], "capabilities": ["gpu"]}
    service |= {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
    return ComposeFile(version="3.8", services={name: service}, volumes={MODELS: {}})
