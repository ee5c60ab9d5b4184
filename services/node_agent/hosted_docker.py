"""Engines in containers of a Docker engine, through its SDK, which blocks: every call is made in a thread."""

import asyncio
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.errors import NotFound as NoSuchContainer
from docker.types import DeviceRequest, LogConfig

from libs.common.errors import Conflict, Forbidden, NotFound, Unavailable
from services.node_agent.model import ContainedEngine

T = TypeVar("T")

CALL_SECONDS = 15.0
CACHE = "/cache"
SHARED_MEMORY = "16g"
"""Ranks hand each other tensors there. Source: vLLM's `docs/deployment/docker.md`, which wants this or the host's."""

NO_DRIVER = "could not select device driver"
NODE_LABEL = "mesh.engine_of"
LOG_FILE_BYTES = 1024 * 1024


class DockerEngines:
    """See `EngineContainers`. `images` are patterns; `folders` are seen at the same place, to be read; weights that are
    downloaded are kept in `cache`. `hub_token` is Hugging Face's."""

    def __init__(
        self, address: str, *, node_id: str, images: Sequence[str], folders: Sequence[Path], cache: Path, hub_token: str
    ) -> None:
        self._address = address
        self._node_id = node_id
        self._images = images
        self._folders = folders
        self._cache = cache
        self._hub_token = hub_token

    async def begin(self, engine: ContainedEngine) -> str:
        if not any(fnmatchcase(engine.image, pattern) for pattern in self._images):
            may = ", ".join(self._images) or "none"
            raise Forbidden(f"image {engine.image} may not be started here; ENGINE_IMAGES allows: {may}", field="image")
        try:
            return await self._do(lambda client: self._begun(client, engine))
        except ImageNotFound as error:
            raise NotFound(f"image {engine.image} is not on this node: docker pull {engine.image} there") from error
        except APIError as error:
            reason = str(error.explanation or error)[:1000]
            if NO_DRIVER in reason:
                reason = f"Docker cannot give it GPUs: install the NVIDIA Container Toolkit on this node ({reason})"
                raise Forbidden(reason, field="runtime") from error
            raise Conflict(f"Docker did not start {engine.image}: {reason}") from error

    def following(self, name: str) -> Sequence[str]:
        return ["-m", "services.node_agent.follow_docker", "--address", self._address, "--name", name]

    async def remove(self, name: str) -> None:
        def remove(client: docker.APIClient) -> None:
            client.remove_container(name, force=True, v=True)

        try:
            await self._do(remove)
        except NoSuchContainer:
            return
        except APIError as error:
            raise Unavailable(f"Docker did not remove {name}: {error.explanation or error}") from error

    def _begun(self, client: docker.APIClient, engine: ContainedEngine) -> str:
        self._cache.mkdir(parents=True, exist_ok=True)
        environment = {"HF_HOME": CACHE, **({"HF_TOKEN": self._hub_token} if self._hub_token else {})}
        made = client.create_container(
            engine.image,
            command=list(engine.command),
            name=engine.name,
            environment={**environment, **engine.environment},
            labels={NODE_LABEL: self._node_id},
            stop_signal="SIGTERM",
            host_config=client.create_host_config(
                network_mode="host",
                init=True,
                shm_size=SHARED_MEMORY,
                security_opt=["no-new-privileges"],
                binds=[f"{self._cache}:{CACHE}:rw", *(f"{folder}:{folder}:ro" for folder in self._folders)],
                log_config=LogConfig(type="json-file", config={"max-size": str(LOG_FILE_BYTES), "max-file": "2"}),
                device_requests=[DeviceRequest(device_ids=list(engine.gpu_uuids), capabilities=[["gpu"]])]
                if engine.gpu_uuids
                else None,
            ),
        )
        try:
            client.start(made["Id"])
        except BaseException:
            client.remove_container(made["Id"], force=True)  # one that was refused its GPUs stays there, made
            raise
        return str(made["Id"])

    async def _do(self, call: Callable[[docker.APIClient], T]) -> T:
        """Raises `APIError`, and `Unavailable` where the engine does not answer."""

        def connected() -> T:
            client = docker.APIClient(base_url=self._address, version="auto", timeout=CALL_SECONDS)
            try:
                return call(client)
            finally:
                client.close()

        try:
            return await asyncio.to_thread(connected)
        except APIError:
            raise
        except (DockerException, OSError) as error:
            raise Unavailable(f"Docker does not answer at {self._address}: {error}") from error
