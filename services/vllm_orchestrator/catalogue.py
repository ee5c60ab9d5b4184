"""Reads a catalogue: models to offer, with their configurations or only their names."""

import json
from collections.abc import Iterable

from libs.common.errors import WrongSetting
from services.vllm_orchestrator.model import CatalogueEntry

MOST_ENTRIES = 200


def catalogue_of(text: str, where: str) -> tuple[CatalogueEntry, ...]:
    """Raises `WrongSetting` for a document that is not a catalogue."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise WrongSetting(f"{where} is not JSON: {error}") from None
    entries = found.get("models") if isinstance(found, dict) else None
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise WrongSetting(
            f'{where} must be like {{"models": [{{"model_name": "owner/name"}}]}}, at most {MOST_ENTRIES}'
        )
    return tuple(_entry(entry, where) for entry in entries)


def _entry(entry: object, where: str) -> CatalogueEntry:
    name = entry.get("model_name") if isinstance(entry, dict) else None
    config = entry.get("model_config") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or not (config is None or isinstance(config, dict)):
        raise WrongSetting(f"{where}: every entry needs a model_name, and a model_config is an object")
    return CatalogueEntry(model_name=name, config=config)


def joined(*catalogues: Iterable[CatalogueEntry]) -> tuple[CatalogueEntry, ...]:
    """One entry for each name; a later catalogue's holds."""
    return tuple({entry.model_name: entry for catalogue in catalogues for entry in catalogue}.values())
