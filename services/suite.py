"""The seven services and how each is built: the one list of them."""

from collections.abc import Mapping

from libs.common.kit.service import Build
from services.benchmark_runner import wiring as benchmark_runner
from services.gpu_orchestrator import wiring as gpu_orchestrator
from services.node_agent import wiring as node_agent
from services.node_registry import wiring as node_registry
from services.resource_detector import wiring as resource_detector
from services.vllm_orchestrator import wiring as vllm_orchestrator
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
