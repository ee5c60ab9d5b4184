"""Models on this machine: in a folder of models, or in a hub's cache."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from libs.common.errors import Malformed
from libs.inference.planner.gguf import GgufHeader, HeaderCutOff, gguf_header, joined, parts_of
from libs.inference.planner.headers import StoredTensor, safetensors_tensors
from services.vllm_orchestrator.documents import (
    FIRST_GGUF_BYTES,
    HEADER_LENGTH,
    LARGEST_DOCUMENT,
    checked_name,
    checked_revision,
    header_length,
    json_object,
    more_of_header,
    weight_files,
)
from services.vllm_orchestrator.model import ModelDocuments


class FileModels:
    """`folder` holds a folder for each model; `cache` is laid out as Hugging Face's clients lay it out."""

    def __init__(self, folder: Path | None, cache: Path | None) -> None:
        self._folder = folder
        self._cache = cache

    async def find(self, model_name: str, revision: str | None) -> ModelDocuments | None:
        """None where it is not here. Raises `Malformed` for documents that cannot be read."""
        return await asyncio.to_thread(self._find, model_name, revision)

    async def find_gguf(self, model_name: str, file: str) -> GgufHeader | None:
        return await asyncio.to_thread(self._find_gguf, model_name, file)

    def _find_gguf(self, model_name: str, file: str) -> GgufHeader | None:
        """Only in the folder of models, whatever the names lead to."""
        if self._folder is None:
            return None
        folder = self._folder.resolve()
        places = [(folder / model_name / name).resolve() for name in parts_of(file)]
        if not all(place.is_relative_to(folder) and place.is_file() for place in places):
            return None
        return joined([_gguf(place) for place in places])

    def _find(self, model_name: str, revision: str | None) -> ModelDocuments | None:
        for place in self._places(model_name, revision):
            if (place / "config.json").is_file():
                in_folder = self._folder is not None and place.is_relative_to(self._folder.resolve())
                return replace(_read(place, model_name), place=str(place) if in_folder else "")
        if Path(model_name).is_absolute():
            raise Malformed(
                f"model_name {model_name!r} is not a folder with a config.json inside the folder of models "
                f"({self._folder or 'none is set'})",
                field="model_name",
            )
        return None

    def _places(self, model_name: str, revision: str | None) -> Iterator[Path]:
        if self._folder is not None:
            folder = self._folder.resolve()
            place = (folder / model_name).resolve()
            if place.is_relative_to(folder) and place != folder:
                yield place
        if self._cache is None or Path(model_name).is_absolute():
            return
        kept = self._cache / f"models--{checked_name(model_name).replace('/', '--')}"
        wanted = checked_revision(revision)
        named = kept / "refs" / wanted
        commit = named.read_text(encoding="ascii").strip() if named.is_file() else wanted
        yield kept / "snapshots" / commit


def _read(place: Path, model_name: str) -> ModelDocuments:
    separate = place / "hf_quant_config.json"
    return ModelDocuments(
        model_name=model_name,
        config=_document(place / "config.json"),
        quantisation=_document(separate) if separate.is_file() else None,
        tensors=tuple(_tensors(place)),
    )


def _document(path: Path) -> Mapping[str, object]:
    if path.stat().st_size > LARGEST_DOCUMENT:
        raise Malformed(f"{path.name} is larger than {LARGEST_DOCUMENT} bytes", field="model_name")
    return json_object(path.read_bytes(), path.name)


def _tensors(place: Path) -> Iterator[StoredTensor]:
    """Those of all files; none where any file is missing, because a part says nothing of the whole."""
    index = place / "model.safetensors.index.json"
    names = weight_files(_document(index)) if index.is_file() else ("model.safetensors",)
    paths = [place / name for name in names]
    if all(path.is_file() for path in paths):
        for path in paths:
            yield from _tensors_of(path)


def _tensors_of(path: Path) -> list[StoredTensor]:
    with path.open("rb") as file:
        length = header_length(file.read(HEADER_LENGTH), path.name)
        return safetensors_tensors(json_object(file.read(length), path.name))


def _gguf(path: Path) -> GgufHeader:
    """As little of the file as its header takes. Raises `Malformed` too where the file ends before its tensors do."""
    size, wanted = path.stat().st_size, FIRST_GGUF_BYTES
    with path.open("rb") as file:
        content = b""
        while True:
            content += file.read(wanted - len(content))
            try:
                header = gguf_header(content, path.name)
            except HeaderCutOff as cut_off:
                if len(content) >= size:
                    raise
                wanted = more_of_header(cut_off)
            else:
                break
    if header.file_bytes > size:
        raise Malformed(
            f"{path.name} is cut off: its tensors end at byte {header.file_bytes}, and it has {size}",
            field="model_name",
        )
    return header
