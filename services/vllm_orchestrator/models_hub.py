"""Models of a Hugging Face hub, and those already on this machine before them."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import httpx
import structlog

from libs.common.errors import Malformed, Unavailable
from libs.inference.planner.gguf import GgufHeader, HeaderCutOff, gguf_header, joined, parts_of
from libs.inference.planner.headers import StoredTensor, safetensors_tensors
from services.vllm_orchestrator.documents import (
    FIRST_GGUF_BYTES,
    HEADER_LENGTH,
    LARGEST_DOCUMENT,
    checked_gguf,
    checked_name,
    checked_revision,
    header_length,
    json_object,
    more_of_header,
    weight_files,
)
from services.vllm_orchestrator.model import ModelDocuments
from services.vllm_orchestrator.models import GatedModel, LocalModels, UnknownModel

log = structlog.get_logger()

FIRST_BYTES = 65536
"""Asked of every file: most headers end within."""

AT_ONCE = 8
MOST_FILES = 256


class HubModels:
    """Asks the hub for small documents and the headers of weight files, never for weights.

    What it learnt is kept under `kept`, and used where the hub says that it did not change or cannot be reached.
    """

    def __init__(
        self, client: httpx.AsyncClient, files: LocalModels, *, endpoint: str, offline: bool, kept: Path
    ) -> None:
        self._client = client
        self._files = files
        self._endpoint = endpoint.rstrip("/")
        self._offline = offline
        self._kept = kept
        self._asking = asyncio.Semaphore(AT_ONCE)

    async def read(self, model_name: str, revision: str | None) -> ModelDocuments:
        found = await self._files.find(model_name, revision)
        if found is not None:
            return found
        checked_name(model_name)
        kept = await asyncio.to_thread(self._recall, model_name, revision)
        if self._offline:
            if kept is None:
                raise UnknownModel(f"{model_name} is not on this machine, and the hub is not asked (HF_HUB_OFFLINE)")
            return _documents(model_name, kept)
        try:
            return await self._asked(model_name, revision, kept)
        except httpx.HTTPError as error:
            if kept is None:
                raise Unavailable(f"{self._endpoint} cannot be asked for {model_name}: {error!r}"[:300]) from error
            log.warning("hub_unreachable", model_name=model_name, reason=repr(error)[:200])
            return _documents(model_name, kept)

    async def read_gguf(self, model_name: str, file: str, revision: str | None) -> GgufHeader:
        if not file.startswith("/"):
            checked_gguf(file)
        found = await self._files.find_gguf(model_name, file)
        if found is not None:
            return found
        if file.startswith("/"):
            raise Malformed(f"ram_mb is wanted: {file} is not in the folder of models here", field="ram_mb")
        checked_name(model_name)
        if self._offline:
            raise UnknownModel(f"{model_name}/{file} is not on this machine, and the hub is not asked (HF_HUB_OFFLINE)")
        place = f"{self._endpoint}/{model_name}/resolve/{checked_revision(revision)}"
        try:
            headers = [await self._gguf(place, name, model_name) for name in parts_of(file)]
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._endpoint} cannot be asked for {model_name}: {error!r}"[:300]) from error
        return joined(headers)

    async def _gguf(self, place: str, file: str, model_name: str) -> GgufHeader:
        content, wanted = b"", FIRST_GGUF_BYTES
        while True:
            asked = {"Range": f"bytes={len(content)}-{wanted - 1}"}
            answer = await self._get(f"{place}/{quote(file)}", asked)
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise Malformed(f"{file} is cut off: it ends at byte {len(content)}", field="gguf_file")
            if answer.headers.get("x-error-code") == "EntryNotFound":
                raise Malformed(f"{model_name} has no file {file}", field="gguf_file")
            if answer.status_code != httpx.codes.PARTIAL_CONTENT:
                _declined(answer, model_name)
                raise Unavailable(f"the hub does not answer with a part of {file}", model_name=model_name)
            content += answer.content
            try:
                return await asyncio.to_thread(gguf_header, content, file)
            except HeaderCutOff as cut_off:
                if len(content) < wanted:
                    raise
                wanted = more_of_header(cut_off)

    async def _asked(self, model_name: str, revision: str | None, kept: Mapping[str, object] | None) -> ModelDocuments:
        place = f"{self._endpoint}/{model_name}/resolve/{checked_revision(revision)}"
        known = str(kept.get("etag") or "") if kept else ""
        answer = await self._get(f"{place}/config.json", {"If-None-Match": known} if known else {})
        if kept is not None and answer.status_code == httpx.codes.NOT_MODIFIED:
            return _documents(model_name, kept)
        _declined(answer, model_name)
        learnt: dict[str, object] = {
            "etag": answer.headers.get("etag", ""),
            "config": json_object(answer.content, f"config.json of {model_name}"),
            "quantisation": await self._optional(f"{place}/hf_quant_config.json", model_name),
            "tensors": [asdict(tensor) for tensor in await self._tensors(place, model_name)],
        }
        await asyncio.to_thread(self._keep, model_name, revision, learnt)
        return _documents(model_name, learnt)

    async def _tensors(self, place: str, model_name: str) -> list[StoredTensor]:
        index = await self._optional(f"{place}/model.safetensors.index.json", model_name)
        names = ("model.safetensors",) if index is None else weight_files(index)
        if len(names) > MOST_FILES:
            return []
        found = await asyncio.gather(*(self._header(f"{place}/{name}") for name in names))
        return [tensor for tensors in found for tensor in tensors] if all(found) else []

    async def _header(self, url: str) -> list[StoredTensor]:
        """Nothing where there is no such file, or where the server does not answer with a part of it."""
        first = await self._get(url, {"Range": f"bytes=0-{FIRST_BYTES - 1}"})
        if first.status_code != httpx.codes.PARTIAL_CONTENT:
            return []
        what, content = url.rsplit("/", 1)[-1], first.content
        end = HEADER_LENGTH + header_length(content, what)
        if end > len(content):
            rest = await self._get(url, {"Range": f"bytes={len(content)}-{end - 1}"})
            if rest.status_code != httpx.codes.PARTIAL_CONTENT:
                return []
            content += rest.content
        return safetensors_tensors(json_object(content[HEADER_LENGTH:end], what))

    async def _optional(self, url: str, model_name: str) -> Mapping[str, object] | None:
        answer = await self._get(url, {})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        _declined(answer, model_name)
        return json_object(answer.content, url.rsplit("/", 1)[-1])

    async def _get(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """At most as many bytes as a document may have: a server that ignores a range must not send the weights."""
        async with (
            self._asking,
            self._client.stream("GET", url, headers={"Accept-Encoding": "identity", **headers}) as answer,
        ):
            content = bytearray()
            if answer.status_code != httpx.codes.OK or "Range" not in headers:
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST_DOCUMENT:
                        raise Malformed(f"{url} is larger than {LARGEST_DOCUMENT} bytes", field="model_name")
            plain = {"etag": answer.headers.get("etag", ""), "x-error-code": answer.headers.get("x-error-code", "")}
            return httpx.Response(answer.status_code, headers=plain, content=bytes(content))

    def _path(self, model_name: str, revision: str | None) -> Path:
        asked = f"{model_name}@{checked_revision(revision)}"
        return self._kept / f"{sha256(asked.encode()).hexdigest()}.json"

    def _recall(self, model_name: str, revision: str | None) -> Mapping[str, object] | None:
        path = self._path(model_name, revision)
        try:
            return json_object(path.read_bytes(), path.name)
        except (OSError, Malformed):
            return None

    def _keep(self, model_name: str, revision: str | None, learnt: Mapping[str, object]) -> None:
        path = self._path(model_name, revision)
        unfinished = path.with_suffix(".unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(learnt), encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            log.warning("model_not_kept", model_name=model_name, reason=str(error)[:200])


def _declined(answer: httpx.Response, model_name: str) -> None:
    reason = answer.headers.get("x-error-code", "")
    if reason == "GatedRepo" or answer.status_code == httpx.codes.FORBIDDEN:
        raise GatedModel(
            f"{model_name} is gated: ask its owner for access, and set HF_TOKEN to a token of that account",
            model_name=model_name,
        )
    if reason == "EntryNotFound":
        raise Malformed(f"{model_name} has no config.json, so it cannot be planned", field="model_name")
    if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.UNAUTHORIZED):
        raise UnknownModel(
            f"the hub knows no model {model_name}, or it is private and HF_TOKEN has no access", model_name=model_name
        )
    if answer.status_code != httpx.codes.OK:
        raise Unavailable(f"the hub answered {answer.status_code} for {model_name}", model_name=model_name)


def _documents(model_name: str, learnt: Mapping[str, object]) -> ModelDocuments:
    config, separate, tensors = (learnt.get(name) for name in ("config", "quantisation", "tensors"))
    if not isinstance(config, dict):
        raise Malformed(f"what is kept of {model_name} cannot be read", field="model_name")
    return ModelDocuments(
        model_name=model_name,
        config=config,
        quantisation=separate if isinstance(separate, dict) else None,
        tensors=tuple(
            StoredTensor(name=each["name"], type=each["type"], shape=tuple(each["shape"]), size=each["size"])
            for each in (tensors if isinstance(tensors, list) else ())
        ),
    )
