"""Jobs that are containers, within what the owner of this machine allows."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn

import structlog

from libs.common.clock import Clock
from libs.common.contracts.work_marshaling import Assignment
from libs.common.errors import Malformed, Unavailable
from services.node_agent.container_spec import ContainerRules, ContainerSpec, encoded, read_spec, refused_by_owner
from services.node_agent.containers import ContainerEnd, ContainerPlan, Containers, WorkFolders
from services.node_agent.model import CONTAINER_TYPE, Holder, JobFailed
from services.node_agent.observer import AgentObserver
from services.node_agent.runner import Began, Runner, Tell, unnoticed

log = structlog.get_logger()

TOKEN_LABEL, WORK_LABEL, AFTERWARDS_LABEL = "mesh.attempt_token", "mesh.work_id", "mesh.afterwards"
LOOK_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 1.0
DISK_SECONDS = 0.5
LAST_WORDS_SECONDS = 2.0
MIB = 1024 * 1024
SHOWN_CHARACTERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Afterwards:
    """What must be known of a container when it has ended. Kept as its label, so that a later agent knows it too."""

    image: str
    outputs: tuple[str, ...]
    success_exit_codes: tuple[int, ...]
    memory_mb: int
    gpu_uuids: tuple[str, ...]

    def label(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_label(cls, label: str) -> "_Afterwards":
        """Raises `KeyError`, `TypeError` or `ValueError` for what is no label of ours."""
        found = json.loads(label)
        return cls(
            image=str(found["image"]),
            outputs=tuple(map(str, found["outputs"])),
            success_exit_codes=tuple(map(int, found["success_exit_codes"])),
            memory_mb=int(found["memory_mb"]),
            gpu_uuids=tuple(map(str, found["gpu_uuids"])),
        )


class ContainerRunner(Runner):
    """A container for each attempt. Its name follows from the attempt's token, so no attempt gets two.

    `upkeep` must run for as long as there is this runner: it watches the engine and removes what nobody needs.
    """

    def __init__(
        self,
        containers: Containers,
        folders: WorkFolders,
        *,
        rules: ContainerRules,
        slots: int,
        grace_seconds: float,
        clock: Clock,
        observer: AgentObserver,
        changed: Callable[[], None],
    ) -> None:
        self._containers = containers
        self._folders = folders
        self._rules = rules
        self._slots = slots
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._observer = observer
        self._changed = changed
        self._mine: set[str] = set()
        self._left: dict[str, _Afterwards | None] = {}
        self._ids: dict[str, str] = {}
        self._gpus_taken: dict[str, tuple[str, ...]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._may_clean = asyncio.Event()

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def lingering(self) -> int:
        return len(self._stopping)

    def work_types(self) -> tuple[str, ...]:
        return (CONTAINER_TYPE,) if self._containers.problem() is None else ()

    def refusal(self, assignment: Assignment) -> str | None:
        problem = self._containers.problem()
        if assignment.work_type != CONTAINER_TYPE:
            return None
        if problem is not None:
            return problem
        wanted = (assignment.payload or {}).get("gpus")
        if isinstance(wanted, int) and len(free := self._free_gpus()) < wanted <= len(self._rules.gpus):
            return f"{len(free)} GPUs are free for containers, {wanted} are asked for"
        return None

    @property
    def claims_memory(self) -> bool:
        return True

    def gpus(self, assignment: Assignment) -> tuple[str, ...]:
        """Raises `JobFailed` when so many are not free."""
        wanted = (assignment.payload or {}).get("gpus", 0)
        return self._take_gpus(_name_of(assignment), wanted if isinstance(wanted, int) else 0)

    def decline(self, assignment: Assignment) -> None:
        self._gpus_taken.pop(_name_of(assignment), None)

    async def run(self, assignment: Assignment, tell: Tell, began: Began = unnoticed) -> dict[str, Any]:
        name = _name_of(assignment)
        afterwards = self._left.pop(name) if name in self._left else await self._started(name, assignment)
        if (container_id := self._ids.get(name)) is not None:
            began(Holder(container_id=container_id))
        return await self._finished(name, afterwards, tell)

    async def left(self, assignments: Sequence[Assignment]) -> frozenset[str]:
        names = {_name_of(each): each.attempt_token or "" for each in assignments if each.work_type == CONTAINER_TYPE}
        try:
            await self._containers.look()
            found = {each.name: each for each in await self._containers.ours() if each.started}
            self._ids = {name: each.container_id for name, each in found.items()}
        except Unavailable as error:
            # Whether they still run cannot be known before the engine is back.
            log.warning("containers_unknown", attempts=len(names), reason=error.message)
            self._left = dict.fromkeys(names)
        else:
            self._left = {name: _read_label(found[name].labels) for name in names if name in found}
        self._mine |= self._left.keys()
        self._gpus_taken = {name: after.gpu_uuids for name, after in self._left.items() if after is not None}
        self._may_clean.set()
        return frozenset(names[name] for name in self._left)

    async def forget(self, assignment: Assignment) -> None:
        name = _name_of(assignment)
        try:
            await self._containers.remove(name)
            await self._folders.remove(name)
        except Unavailable as error:
            log.warning("container_not_removed", container=name, reason=error.message)
        self._mine.discard(name)
        self._ids.pop(name, None)
        self._gpus_taken.pop(name, None)

    async def upkeep(self) -> NoReturn:
        await self._may_clean.wait()
        while True:
            before = self._containers.problem()
            try:
                await self._containers.look()
                await self._remove_strays()
            except Unavailable as error:
                if before is None:
                    log.warning("containers_away", reason=error.message)
            if (problem := self._containers.problem()) != before:
                self._changed()
            await self._clock.sleep(LOOK_SECONDS if problem is None else LOOK_AGAIN_SECONDS)

    async def _started(self, name: str, assignment: Assignment) -> _Afterwards:
        spec = self._spec(assignment)
        self._mine.add(name)
        afterwards = _Afterwards(
            image=spec.image,
            outputs=spec.outputs,
            success_exit_codes=spec.success_exit_codes,
            memory_mb=spec.memory_mb or self._rules.memory_mb,
            gpu_uuids=self._gpus_taken.get(name) or self._take_gpus(name, spec.gpus),
        )
        folder = await self._folders.prepare(name, spec.files)
        plan = ContainerPlan(
            name=name,
            image=spec.image,
            command=spec.command,
            environment=spec.environment,
            labels={
                TOKEN_LABEL: assignment.attempt_token or "",
                WORK_LABEL: assignment.work_id,
                AFTERWARDS_LABEL: afterwards.label(),
            },
            work_folder=folder,
            cpus=spec.cpus or self._rules.cpus,
            memory_mb=afterwards.memory_mb,
            file_mb=self._rules.disk_mb,
            gpu_uuids=afterwards.gpu_uuids,
            network=spec.network,
        )
        try:
            # A cancellation must not lose sight of a container that is just being started.
            self._ids[name] = await _to_its_end(self._containers.start(plan))
        except Unavailable as error:
            raise JobFailed("containers_unavailable", error.message, retryable=True) from error
        except asyncio.CancelledError:
            await self._stopped(name)
            raise
        return afterwards

    def _spec(self, assignment: Assignment) -> ContainerSpec:
        try:
            spec = read_spec(assignment.payload or {})
        except Malformed as error:
            raise JobFailed("bad_payload", error.message, retryable=False) from error
        refused = refused_by_owner(spec, self._rules)
        if refused is not None:
            raise JobFailed(refused.code, refused.message, retryable=refused.retryable)
        return spec

    def _free_gpus(self) -> list[str]:
        taken = {uuid for uuids in self._gpus_taken.values() for uuid in uuids}
        return [uuid for uuid in self._rules.gpus if uuid not in taken]

    def _take_gpus(self, name: str, count: int) -> tuple[str, ...]:
        free = self._free_gpus()
        if count > len(free):
            raise JobFailed("no_gpu_free", f"`gpus` is {count}; {len(free)} are free for containers", retryable=True)
        self._gpus_taken[name] = tuple(free[:count])
        return self._gpus_taken[name]

    async def _finished(self, name: str, afterwards: _Afterwards | None, tell: Tell) -> dict[str, Any]:
        end = await self._ended(name, tell)
        afterwards = afterwards or await self._afterwards_of(name)
        if end is None or afterwards is None:
            raise JobFailed("container_lost", "its container is not there any more", retryable=True)
        if end.exit_code not in afterwards.success_exit_codes:
            raise _failure(end, afterwards)
        taken = await self._folders.take(name, afterwards.outputs)
        return {
            "image": afterwards.image,
            "exit_code": end.exit_code,
            "seconds": end.seconds,
            "stdout": end.stdout,
            "stderr": end.stderr,
            "output_cut": end.output_cut,
            "files": {path: encoded(content) for path, content in taken.items()},
        }

    async def _ended(self, name: str, tell: Tell) -> ContainerEnd | None:
        """Its end, however often the engine goes away meanwhile; the attempt's time limit bounds that."""
        while True:
            waiting = asyncio.ensure_future(self._containers.ended(name, tell))
            try:
                while not waiting.done():
                    await asyncio.wait([waiting], timeout=DISK_SECONDS)
                    await self._check_disk(name)
                return await waiting
            except Unavailable as error:
                log.warning("container_out_of_sight", container=name, reason=error.message)
            except BaseException:
                await self._stopped(name)
                # What it said on SIGTERM is heard as well.
                await asyncio.wait([waiting], timeout=LAST_WORDS_SECONDS)
                raise
            finally:
                waiting.cancel()
            await self._clock.sleep(LOOK_AGAIN_SECONDS)

    async def _check_disk(self, name: str) -> None:
        used, most = await self._folders.used_bytes(name), self._rules.disk_mb * MIB
        if used > most:
            raise JobFailed(
                "disk_exceeded",
                f"its files take {used // MIB} MiB; CONTAINER_DISK_MB gives a container {self._rules.disk_mb} here",
                retryable=False,
            )

    async def _afterwards_of(self, name: str) -> _Afterwards | None:
        found = [each for each in await self._containers.ours() if each.name == name]
        return _read_label(found[0].labels) if found else None

    async def _stopped(self, name: str) -> None:
        """Whoever waits for it may be cancelled once more: it is stopped all the same."""
        stopping = asyncio.create_task(self._stop(name), name=f"stop {name}")
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        await asyncio.shield(stopping)

    async def _stop(self, name: str) -> None:
        try:
            await self._containers.stop(name, self._grace_seconds)
        except Unavailable as error:
            log.warning("container_not_stopped", container=name, reason=error.message)
        self._changed()

    async def _remove_strays(self) -> None:
        """What an earlier agent, or an engine that was away, left behind."""
        for stray in await self._containers.ours():
            if stray.name not in self._mine:
                await self._containers.stop(stray.name, self._grace_seconds)
                await self._containers.remove(stray.name)
                self._observer.stray_removed()
                log.info("container_removed", container=stray.name, work=stray.labels.get(WORK_LABEL))
        await self._folders.remove_others(self._mine)


async def _to_its_end(starting: Awaitable[str]) -> str:
    task = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _failure(end: ContainerEnd, afterwards: _Afterwards) -> JobFailed:
    if end.oom_killed:
        return JobFailed(
            "oom_killed", f"it needed more memory than the {afterwards.memory_mb} MiB that it had", retryable=False
        )
    said = (end.stderr or end.stdout).strip()[-SHOWN_CHARACTERS:]
    return JobFailed("container_failed", f"it ended with exit status {end.exit_code}: {said}", retryable=True)


def _read_label(labels: Mapping[str, str]) -> _Afterwards | None:
    try:
        return _Afterwards.from_label(labels[AFTERWARDS_LABEL])
    except (KeyError, TypeError, ValueError):
        return None


def _name_of(assignment: Assignment) -> str:
    return f"mesh-{sha256((assignment.attempt_token or '').encode()).hexdigest()[:40]}"
