"""The JetStream streams and buckets of the mesh, as data. Whoever starts first creates them.

Subjects are listed exactly, never with `compute.>`: a stream that covers a request subject would answer the request
with its own receipt before the service does.
"""

from dataclasses import dataclass
from typing import Literal

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A stream: what it keeps, how much of it, and what happens when it is full.

    `discard="new"` refuses what would not fit, so that nothing that was accepted is ever pushed out.
    `duplicate_window_seconds` is how long the server remembers a message id. With `rollup` a message may take the place
    of all before it on its subject.
    """

    name: str
    subjects: tuple[str, ...]
    max_bytes: int
    summary: str
    discard: Literal["new", "old"] = "new"
    duplicate_window_seconds: int = 120
    rollup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A set of keys with one value each (a JetStream KV bucket). One writer per key; `ttl` lets a key expire."""

    name: str
    summary: str
    max_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectBucket:
    """A set of named objects that are too large for messages (a JetStream object store)."""

    name: str
    summary: str
    max_bytes: int

    @property
    def stream(self) -> Stream:
        """Where it lies, as NATS lays it out."""
        return Stream(
            name=f"OBJ_{self.name}",
            subjects=(f"$O.{self.name}.C.>", f"$O.{self.name}.M.>"),
            max_bytes=self.max_bytes,
            summary=self.summary,
            rollup=True,
        )


WORK_IN = Stream(
    name="WORK_IN",
    subjects=("compute.work.submit.v1", "compute.work.submitted.v1"),
    max_bytes=1024 * MIB,
    summary="Work as it was submitted, by strangers and by our own REST door.",
)
WORK_OUT = Stream(
    name="WORK_OUT",
    subjects=("compute.work.completed.v1", "compute.work.outcomes.v1", "compute.work.failed.v1"),
    max_bytes=1024 * MIB,
    summary="How attempts ended, as their workers tell it.",
)
WORK_LOG = Stream(
    name="WORK_LOG",
    subjects=("compute.work.log.v1", "compute.work.epoch.v1"),
    max_bytes=1024 * MIB,
    summary="What work marshaling decided. Written by its leader only; replay rebuilds its memory.",
)
WORK_DONE = Stream(
    name="WORK_DONE",
    subjects=("compute.work.finished.v1",),
    max_bytes=1024 * MIB,
    summary="Finished work on its way into the archive. What the archive has is removed.",
)
VLLM_LOG = Stream(
    name="VLLM_LOG",
    subjects=("compute.vllm.log.v1", "compute.vllm.epoch.v1"),
    max_bytes=128 * MIB,
    summary="What the vLLM orchestrator decided about instances. Written by its leader only.",
)
DEAD_LETTERS = Stream(
    name="DEAD_LETTERS",
    subjects=("compute.dead_letters.v1",),
    max_bytes=256 * MIB,
    discard="old",
    summary="Durable messages that could not be used, with the reason.",
)

WORK_OBJECTS = ObjectBucket(
    name="WORK_OBJECTS",
    max_bytes=2048 * MIB,
    summary="Payloads and results of more than 512 KiB.",
)
INLINE_MOST_BYTES = 512 * 1024
"""A payload or a result that is larger, as JSON, is kept as an object of WORK_OBJECTS."""

RESULT_OBJECT = "result-{token}"
"""How a worker names the object of a large result."""

STREAMS = (WORK_IN, WORK_OUT, WORK_LOG, WORK_DONE, VLLM_LOG, DEAD_LETTERS)

NODE_REGISTRY = Bucket(
    name="NODE_REGISTRY",
    summary="What the registries were told and must not forget: drains, registrations over REST, deletions.",
)

WORK_MARSHALING = Bucket(
    name="WORK_MARSHALING",
    summary="Which instance of work marshaling leads: a lease, renewed all the time. The log alone decides.",
)

GPU_RESERVATIONS = Bucket(
    name="GPU_RESERVATIONS",
    summary="Open reservations of each node, as it last told: a copy, for others, while the node is away.",
)

VLLM_STARTS = Bucket(
    name="VLLM_STARTS",
    summary="What engines' logs told of their starts, beside what was predicted: it corrects the next plans.",
    max_bytes=16 * MIB,
)

VLLM_ORCHESTRATOR = Bucket(
    name="VLLM_ORCHESTRATOR",
    summary="Which vLLM orchestrator looks after instances: a lease, renewed all the time. The log alone decides.",
)
