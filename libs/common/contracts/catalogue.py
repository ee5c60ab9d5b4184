"""Everything that is said in the mesh, found by looking into the contract modules.

For what must know all of it: the generated references, the samples, the start of a whole mesh.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from libs.common import contracts
from libs.common.contracts.base import Call, Message, Topic
from libs.common.contracts.streams import Bucket, ObjectBucket, Stream

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Sorted by subject or by name, each once."""

    topics: tuple[Topic[Any], ...]
    calls: tuple[Call[Any, Any], ...]
    streams: tuple[Stream, ...]
    buckets: tuple[Bucket, ...]
    objects: tuple[ObjectBucket, ...]

    def messages(self) -> Mapping[str, type[Message]]:
        """Everything that travels, by its wire name: a topic's subject, a call's subject with `.request`, `.reply`."""
        told = {topic.subject: topic.message for topic in self.topics}
        asked = {f"{call.subject}.request": call.request for call in self.calls}
        answered = {f"{call.subject}.reply": call.reply for call in self.calls}
        return dict(sorted((told | asked | answered).items()))

    def stream_of(self, topic: Topic[Any]) -> Stream | None:
        return next((stream for stream in self.streams if stream.name == topic.stream), None)


@cache
def catalogue() -> Catalogue:
    declared = list(_declared())
    return Catalogue(
        topics=_sorted(declared, Topic, "subject"),
        calls=_sorted(declared, Call, "subject"),
        streams=_sorted(declared, Stream, "name"),
        buckets=_sorted(declared, Bucket, "name"),
        objects=_sorted(declared, ObjectBucket, "name"),
    )


def _declared() -> Iterator[object]:
    for found in iter_modules(contracts.__path__, f"{contracts.__name__}."):
        if found.name != __name__:
            yield from vars(import_module(found.name)).values()


def _sorted(declared: list[object], kind: type[T], key: str) -> tuple[T, ...]:
    # A constant that one contract module imports from another is the same object: it counts once.
    each = {id(item): item for item in declared if isinstance(item, kind)}
    return tuple(sorted(each.values(), key=lambda item: str(getattr(item, key))))
