"""Jobs are promised memory in this machine's ledger before they begin, and it is free again when they are over."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from libs.common.bus.bus import Bus
from libs.common.clock import SystemClock
from libs.common.contracts.base import ObjectRef
from libs.common.contracts.gpu_orchestrator import Reservation
from libs.common.contracts.streams import WORK_OBJECTS
from libs.common.contracts.work_marshaling import Assignment, WorkCompleted
from libs.common.contracts.work_requirements import JobMemory
from services.node_agent.claiming import Claiming
from services.node_agent.job_memory import MemoryOfJobs
from services.node_agent.large import Large
from services.node_agent.runner import FunctionJobs
from tests.integration.node_agent.conftest import until
from tests.integration.node_agent.functions import gate
from tests.integration.node_agent.mesh import NODE, PLACE, Marshaling, agent, function_job, job, marshaling
from tests.unit.gpu_orchestrator.world import FREE_MB, World, made_world

GATE = "memory"
IN_PROCESSES = {"AGENT_FUNCTION_PROCESSES": "true"}


@asynccontextmanager
async def node_with_ledger(
    tmp_path: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Marshaling, World]]:
    """An agent and the ledger of its machine, and who stands for work marshaling."""
    async with (
        marshaling() as other,
        made_world(tmp_path, node_id=NODE, server=other.server) as world,
        agent(other.server, tmp_path, settings),
    ):
        yield other, world


def held(world: World) -> tuple[Reservation, ...]:
    return world.orchestrator.reservations(only_open=True).reservations


def waiting_job(memory: JobMemory, at: str = GATE) -> Assignment:
    return function_job("wait_at", at, memory=memory)


async def test_two_jobs_are_not_promised_the_same_vram(tmp_path: Path):
    large = JobMemory(vram_mb=FREE_MB - 100, gpu_count=1)
    jobs = [waiting_job(large) for _ in range(3)]
    small = function_job("echo", "small", memory=JobMemory(vram_mb=50, gpu_count=1))
    async with node_with_ledger(tmp_path, {"AGENT_FUNCTION_SLOTS": "9"}) as (other, world):
        world.processes.running[os.getpid()] = 1
        answers = await other.assign(*jobs)
        taken = [job for job, answer in zip(jobs, answers, strict=True) if answer.accepted]
        (refused,) = [answer for answer in answers if not answer.accepted]

        assert refused.short_of_memory
        assert refused.reason.startswith("its memory cannot be promised: ")
        assert "MiB" in refused.reason
        assert sorted(uuid for each in held(world) for uuid in each.gpu_uuids) == ["GPU-0", "GPU-1"]
        assert (await other.assign(small))[0].accepted
        await until(lambda: all(each.pid == os.getpid() for each in held(world)))
        gate(GATE).set()
        for job in taken:
            assert isinstance(await other.outcome_of(job), WorkCompleted)
        await until(lambda: held(world) == ())


async def test_what_is_refused_for_another_reason_holds_no_memory(tmp_path: Path):
    jobs = [waiting_job(JobMemory(ram_mb=100), "slots") for _ in range(2)]
    async with node_with_ledger(tmp_path, {"AGENT_FUNCTION_SLOTS": "1"}) as (other, world):
        world.processes.running[os.getpid()] = 1
        answers = await other.assign(*jobs)
        gate("slots").set()

        assert [(each.accepted, each.short_of_memory) for each in answers] == [(True, False), (False, False)]
        assert [each.ram_mb for each in held(world)] == [100]


async def test_a_job_that_is_stopped_gives_its_memory_back(tmp_path: Path):
    job = waiting_job(JobMemory(ram_mb=100), "stopped-with-memory")
    async with node_with_ledger(tmp_path) as (other, world):
        world.processes.running[os.getpid()] = 1
        await other.assign(job)
        assert len(held(world)) == 1
        await other.stop(job.attempt_token or "")
        gate("stopped-with-memory").set()

        assert held(world) == ()


async def test_a_function_in_a_process_sees_the_gpus_it_was_promised_and_leaves_no_process(tmp_path: Path):
    jobs = [function_job("seen_gpus", memory=JobMemory(vram_mb=100, gpu_count=count)) for count in (2, 0)]
    async with node_with_ledger(tmp_path, IN_PROCESSES | {"AGENT_FUNCTIONS": f"seen_gpus={PLACE}:seen_gpus"}) as (
        other,
        world,
    ):
        seen = []
        for job in jobs:
            await other.assign(job)
            outcome = await other.outcome_of(job)
            assert isinstance(outcome, WorkCompleted)
            seen.append(outcome.result)

        assert seen == ["GPU-0,GPU-1", None]
        assert held(world) == ()


async def test_where_no_ledger_is_a_job_is_run_without_a_promise(tmp_path: Path):
    job = function_job("echo", 1, memory=JobMemory(ram_mb=100))
    async with marshaling() as other, agent(other.server, tmp_path):
        assert (await other.assign(job))[0].accepted
        assert isinstance(await other.outcome_of(job), WorkCompleted)


async def test_an_attempt_that_is_given_again_after_its_end_claims_nothing_more(tmp_path: Path):
    job = function_job("echo", 1, memory=JobMemory(ram_mb=100))
    async with node_with_ledger(tmp_path) as (other, world):
        world.processes.running[os.getpid()] = 1
        await other.assign(job)
        await other.outcome_of(job)
        await until(lambda: held(world) == ())
        again = await other.assign(job, again=True)

        assert again[0].accepted
        assert held(world) == ()


class AsContainers(FunctionJobs):
    """Says like containers how many GPUs a job is to have."""

    def gpus(self, assignment: Assignment) -> tuple[str, ...]:
        return ("GPU-0", "GPU-1")[: (assignment.payload or {}).get("gpus", 0)]


async def large_container_job(bus: Bus, payload: object) -> Assignment:
    ref = await bus.objects(WORK_OBJECTS).put("its-payload", json.dumps(payload).encode())
    return with_payload_ref(ref)


def with_payload_ref(ref: ObjectRef) -> Assignment:
    memory = JobMemory(ram_mb=100, vram_mb=500, gpu_count=1)
    return job("container", {}, memory=memory).model_copy(update={"payload": None, "payload_ref": ref})


async def claimed(bus: Bus, assignment: Assignment) -> Assignment | str:
    memory = MemoryOfJobs(Claiming(bus, node_id=NODE), Large(bus), SystemClock())
    return (await memory.claim_all({"t": (assignment, AsContainers(1))}))["t"]


async def test_a_job_whose_payload_is_large_is_promised_vram_on_as_many_gpus_as_it_asks_for(tmp_path: Path):
    async with node_with_ledger(tmp_path) as (other, world):
        padding = "x" * 600 * 1024
        got = await claimed(other.bus, await large_container_job(other.bus, {"gpus": 2, "environment": {"X": padding}}))

        assert isinstance(got, Assignment)
        assert got.payload is None
        assert got.memory is not None
        assert got.memory.gpu_uuids == ("GPU-0", "GPU-1")
        (reservation,) = held(world)
        assert (reservation.gpu_uuids, reservation.ram_mb) == (("GPU-0", "GPU-1"), 100)


async def test_a_job_whose_large_payload_is_lost_is_taken_without_a_promise_to_end_by_saying_so(tmp_path: Path):
    async with node_with_ledger(tmp_path) as (other, world):
        lost = with_payload_ref(ObjectRef(name="never-put", digest=f"SHA-256={'A' * 43}=", bytes=600_000))

        assert await claimed(other.bus, lost) == lost
        assert held(world) == ()
