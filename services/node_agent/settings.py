"""Every knob of the node agent."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.kit.settings import HeaderKey

_FUNCTION = re.compile(r"[A-Za-z_][\w.-]*=[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_IMAGES = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._/:@*?\[\]-]{0,255}")
_PROGRAM = re.compile(r"(vllm|llama\.cpp)(=\S+)?")
_MAGIC = b"GGUF"


class Settings(BaseSettings):
    """Read by `wiring.py` only."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    port: int = Field(
        8120, ge=0, le=65535, validation_alias="NODE_AGENT_PORT", description="Where the HTTP door listens."
    )
    engine: Literal["llama.cpp", "openai", "none"] = Field(
        "llama.cpp",
        description="The inference engine: llama.cpp, kept running by the agent; openai: one that you run at "
        "`ENGINE_URL`; none: no inference here.",
    )
    engine_url: str | None = Field(
        None,
        pattern=r"^http://[^\s/?#]+[^\s?#]*$",
        json_schema_extra={"allowed": "an address such as http://127.0.0.1:8000"},
        description="With `ENGINE=openai`: where your engine serves OpenAI's HTTP interface.",
    )
    model: Path | None = Field(
        None,
        json_schema_extra={"allowed": "the path of a GGUF file"},
        description="The model to serve. Not set: a tiny model with random weights that answers nonsense.",
    )
    model_name: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="What the model is called in the mesh; not set: its file's name. With `ENGINE=openai`: which of "
        "the engine's models is used; not set: the first.",
    )
    engine_device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="What the engine computes on; auto: a GPU where the engine's build can use one."
    )
    engine_slots: int = Field(4, ge=1, le=256, description="Requests that the engine serves at once.")
    engine_context: int = Field(2048, ge=128, le=1_048_576, description="Tokens of context for each slot.")
    engine_threads: int | None = Field(
        None, ge=1, le=512, description="Threads the engine computes with. Not set: as many as there are processors."
    )
    engine_embeddings: bool = Field(False, description="Also take work of type `embedding`; makes prompts slower.")
    engine_start_seconds: float = Field(300.0, ge=1, le=3600, description="How long loading the model may take.")
    engine_programs: tuple[str, ...] = Field(
        ("vllm", "llama.cpp"),
        max_length=2,
        json_schema_extra={"allowed": "vllm, llama.cpp, separated by commas; vllm=/path/of/vllm says where it is"},
        description="Engines that deployments may start here; empty: none. llama.cpp is built in.",
    )
    engine_host: str = Field(
        "127.0.0.1",
        json_schema_extra={"allowed": "an address of this machine; 0.0.0.0 or :: for every one"},
        description="Where engines that deployments start listen. With another one than loopback's others reach them: "
        "set `ENGINE_API_KEY` too, or let nobody into that network who is not to ask them.",
    )
    engine_address: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._:-]{1,255}$",
        json_schema_extra={"allowed": "a name or an address"},
        description="What others are told such engines are reached by. Not set: `ENGINE_HOST`, or where that is every "
        "address, the first one of this machine that others may reach.",
    )
    engine_api_key: HeaderKey | None = Field(
        None,
        json_schema_extra={"allowed": "printable characters without spaces"},
        description="What clients have to say to such engines, as `Authorization: Bearer …`; work of the queue says it "
        "by itself. Not set: nobody is asked.",
    )
    engine_images: tuple[str, ...] = Field(
        (),
        max_length=100,
        json_schema_extra={"allowed": "patterns such as vllm/vllm-openai:*, separated by commas"},
        description="Images that deployments may run engines in here, with the network of the machine; `*` stands for "
        "any characters. Not set: no engines in containers. Images are not fetched: have them on this machine.",
    )
    engine_folders: tuple[Path, ...] = Field(
        (),
        max_length=100,
        json_schema_extra={"allowed": "paths of folders, separated by commas"},
        description="Folders with models that engines in containers may read, at the same place.",
    )
    engine_cache: Path | None = Field(
        None,
        json_schema_extra={"allowed": "the path of a folder"},
        description="Where engines in containers keep weights that they download. Not set: in the data directory.",
    )
    hub_token: SecretStr | None = Field(
        None, validation_alias="HF_TOKEN", description="For models of Hugging Face that ask for one, in containers."
    )
    agent_functions: tuple[str, ...] = Field(
        (),
        json_schema_extra={"allowed": "a list such as name=module:function, its parts separated by commas"},
        description="Python functions that work of type `function` may call here.",
    )
    agent_function_slots: int = Field(4, ge=1, le=1000, description="Functions that run at once.")
    agent_function_processes: bool = Field(
        False,
        description="Call functions in processes of their own, which are ended with all that they started when their "
        "time is over or they are stopped. Otherwise in threads: quicker, but a function that hangs keeps its slot.",
    )
    agent_function_grace_seconds: float = Field(
        5.0, ge=0, le=600, description="How long such a process has between SIGTERM and SIGKILL."
    )
    container_images: tuple[str, ...] = Field(
        (),
        max_length=1000,
        json_schema_extra={"allowed": "patterns such as busybox:1.36 or example.com/team/*, separated by commas"},
        description="Images that work of type `container` may run here; `*` stands for any characters. Not set: no "
        "containers are run. Images are not fetched: have them on this machine.",
    )
    container_slots: int = Field(2, ge=1, le=256, description="Containers that run at once.")
    container_cpus: float = Field(1.0, ge=0.01, le=1024, description="Processors each container may use at most.")
    container_memory_mb: int = Field(
        1024, ge=6, le=67_108_864, description="Memory each container may use at most, in MiB; it gets no swap."
    )
    container_disk_mb: int = Field(
        1024, ge=1, le=67_108_864, description="What the files of each container may take on the disk, in MiB."
    )
    container_gpus: tuple[str, ...] = Field(
        (),
        max_length=64,
        json_schema_extra={"allowed": "UUIDs such as GPU-7d1c…, separated by commas"},
        description="GPUs that containers may have, each one container at a time. Not set: none.",
    )
    container_network: bool = Field(False, description="Let containers that ask for it use the network.")
    container_grace_seconds: float = Field(
        10.0, ge=0, le=600, description="How long a container has between SIGTERM and SIGKILL."
    )
    docker_host: str = Field(
        "unix:///var/run/docker.sock",
        pattern=r"^unix://\S+$",
        json_schema_extra={"allowed": "a socket on this machine such as unix:///var/run/docker.sock"},
        description="Where the Docker engine listens.",
    )
    agent_drain_seconds: float = Field(
        5.0, ge=0, le=600, description="How long running jobs may go on when the agent is told to stop."
    )

    @field_validator("model")
    @classmethod
    def _is_a_model(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        if not path.is_file():
            raise ValueError("there is no such file; it must be the path of a GGUF file, or not be set")
        try:
            with path.open("rb") as file:
                magic = file.read(len(_MAGIC))
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror}); it must be the path of a GGUF file") from error
        if magic != _MAGIC:
            raise ValueError("that file is not a GGUF file; it must be the path of one, or not be set")
        return path.resolve()

    @field_validator("container_images", "engine_images")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not _IMAGES.fullmatch(pattern):
                raise ValueError(f"{pattern!r} is no pattern for names of images, such as busybox:1.36 or team/*")
        return patterns

    @field_validator("engine_programs")
    @classmethod
    def _are_programs(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            if not _PROGRAM.fullmatch(part):
                raise ValueError(f"{part!r} is not vllm, llama.cpp or vllm=/path/of/vllm")
        return parts

    @field_validator("engine_host")
    @classmethod
    def _is_an_address(cls, host: str) -> str:
        try:
            return str(ip_address(host))
        except ValueError:
            raise ValueError(f"{host!r} is no address such as 127.0.0.1, 0.0.0.0 or fd00::1") from None

    @field_validator("agent_functions")
    @classmethod
    def _are_functions(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            if not _FUNCTION.fullmatch(part):
                raise ValueError(f"{part!r} is not of the form name=module:function")
        return parts

    @model_validator(mode="after")
    def _has_its_engine(self) -> Self:
        if self.engine == "openai" and self.engine_url is None:
            raise ValueError("ENGINE is openai, but ENGINE_URL does not say where that engine is; set it")
        return self

    @staticmethod
    def said(secret: SecretStr | None) -> str:
        """Empty where none is set."""
        return secret.get_secret_value() if secret else ""

    @property
    def functions(self) -> dict[str, str]:
        """From a function's name to where it is."""
        return dict(part.split("=", 1) for part in self.agent_functions)

    @property
    def programs(self) -> dict[str, str]:
        """From an engine that may be started to its program."""
        return {name: path or name for name, _, path in (part.partition("=") for part in self.engine_programs)}
