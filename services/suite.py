"""The seven services: how each is built, and where its HTTP door is. The one list of them."""

from collections.abc import Callable, Mapping

from libs.common.kit.service import Build
from libs.common.kit.settings import load
from services.benchmark_runner import settings as benchmark_runner_settings
from services.benchmark_runner import wiring as benchmark_runner
from services.gpu_orchestrator import settings as gpu_orchestrator_settings
from services.gpu_orchestrator import wiring as gpu_orchestrator
from services.node_agent import settings as node_agent_settings
from services.node_agent import wiring as node_agent
from services.node_registry import settings as node_registry_settings
from services.node_registry import wiring as node_registry
from services.resource_detector import settings as resource_detector_settings
from services.resource_detector import wiring as resource_detector
from services.vllm_orchestrator import settings as vllm_orchestrator_settings
from services.vllm_orchestrator import wiring as vllm_orchestrator
from services.work_marshaling import settings as work_marshaling_settings
from services.work_marshaling import wiring as work_marshaling

SUITE: Mapping[str, Build] = {
    "node_registry": node_registry.build,
    "resource_detector": resource_detector.build,
    "vllm_orchestrator": vllm_orchestrator.build,
    "work_marshaling": work_marshaling.build,
    "gpu_orchestrator": gpu_orchestrator.build,
    "benchmark_runner": benchmark_runner.build,
    "node_agent": node_agent.build,
}

_PORTS: Mapping[str, Callable[[], int]] = {
    "node_registry": lambda: load(node_registry_settings.Settings).port,
    "resource_detector": lambda: load(resource_detector_settings.Settings).port,
    "vllm_orchestrator": lambda: load(vllm_orchestrator_settings.Settings).port,
    "work_marshaling": lambda: load(work_marshaling_settings.Settings).port,
    "gpu_orchestrator": lambda: load(gpu_orchestrator_settings.Settings).port,
    "benchmark_runner": lambda: load(benchmark_runner_settings.Settings).port,
    "node_agent": lambda: load(node_agent_settings.Settings).port,
}


def addresses(host: str) -> Mapping[str, str]:
    """Where each service's HTTP door is, by its settings. Raises `WrongSetting`."""
    return {name: f"http://{host}:{port()}" for name, port in _PORTS.items()}
