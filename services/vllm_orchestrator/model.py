"""What the orchestrator knows of models."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.common.contracts.vllm_instances import DeployRequest
from libs.inference.planner.devices import Gpu
from libs.inference.planner.headers import StoredTensor

GATEWAY_STARTS, GATEWAY_REFUSES, GATEWAY_MISSING = 0, 1, 3
"""How the program ends that tries a gateway's configuration."""

GATEWAY_SAID = "\x1e"
"""Stands before what that program says: what the gateway itself writes comes earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDocuments:
    """What says how a model is built: its configuration, and what its files hold where that could be read.

    `place` is the folder that an engine is to read it from, where that is not found by the name. `draft` is of the
    model that guesses ahead of it.
    """

    model_name: str
    place: str = ""
    config: Mapping[str, object]
    quantisation: Mapping[str, object] | None = None
    tensors: tuple[StoredTensor, ...] = ()
    draft: "ModelDocuments | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model to offer. Without a configuration it is looked up by its name."""

    model_name: str
    config: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedEngine:
    """An engine on GPUs that serves. `key` is of this start and no other; `place` says whose log it writes."""

    key: str
    place: tuple[str, int]
    request: DeployRequest
    arguments: tuple[str, ...]
    gpus: tuple[Gpu, ...]
