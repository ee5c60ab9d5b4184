"""An engine as a file for Docker Compose."""

import pytest

from libs.common.contracts.vllm_instances import EngineChoice
from libs.common.errors import Conflict
from services.vllm_orchestrator.compose import compose_file
from tests.unit.vllm_orchestrator.test_machine import replica_of


def test_an_engine_gets_its_gpus_by_uuid_and_listens_on_loopback_only():
    part = (
        replica_of()
        .parts[0]
        .model_copy(
            update={
                "gpu_uuids": ("GPU-a", "GPU-b"),
                "arguments": ("some/model", "--tensor-parallel-size", "2"),
                "environment": {"CUDA_VISIBLE_DEVICES": "4,5", "VLLM_PP_LAYER_PARTITION": "20,12"},
            }
        )
    )

    told = compose_file("one", EngineChoice.VLLM, part)

    service = told.services["one"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["GPU-a", "GPU-b"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["command"][:3] == ["some/model", "--tensor-parallel-size", "2"]
    assert service["environment"] == {"VLLM_PP_LAYER_PARTITION": "20,12", "HF_HOME": "/models"}
    assert [volume.split(":")[0] for volume in service["volumes"]] == list(told.volumes)


def test_an_engine_without_gpus_has_no_image():
    with pytest.raises(Conflict, match="no image"):
        compose_file("one", EngineChoice.VLLM, replica_of().parts[0])


def test_llama_cpp_has_no_image():
    on_gpu = replica_of().parts[0].model_copy(update={"gpu_uuids": ("GPU-a",)})
    with pytest.raises(Conflict, match="no image"):
        compose_file("one", EngineChoice.LLAMA, on_gpu)


def test_an_engine_over_ray_is_no_single_container():
    part = replica_of().parts[0].model_copy(update={"gpu_uuids": ("GPU-a",), "ray": ("start", "--head")})

    with pytest.raises(Conflict, match="Ray"):
        compose_file("one", EngineChoice.VLLM, part)
