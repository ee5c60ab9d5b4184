"""The faults, one function each: what is done to the mesh while at least a hundred jobs run."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nats as nats_py
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from tests.faults.crowd import Crowd
from tests.faults.stage import SLOTS, CannotPlay, Service, Stage

TAKE_OVER_SECONDS = 5.0
POISON_SECONDS = 900.0
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@dataclass(frozen=True, kw_only=True)
class Scene:
    stage: Stage
    crowd: Crowd
    chance: random.Random
    scale: float = 1.0

    def times(self, number: int) -> int:
        """Fewer in a short version."""
        return max(1, round(number * self.scale))

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.chance.uniform(least, most))

    async def ready(self) -> None:
        await asyncio.to_thread(self.stage.wait_ready)

    async def leader(self, but: Service | None = None) -> Service:
        """The marshaler that leads, once one does."""
        async with asyncio.timeout(4 * TAKE_OVER_SECONDS):
            while True:
                for each in self.stage.marshalings:
                    if each is not but and each.alive() and await asyncio.to_thread(each.leads):
                        return each
                await asyncio.sleep(0.05)

    async def standby(self) -> Service:
        leader = await self.leader()
        return next(each for each in self.stage.marshalings if each is not leader)


Act = Callable[[Scene], Awaitable[str]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """`act` does it, and says in a few words how often. `most` items are accepted at most, and with `whole` all of
    them; with `standby` a second marshaler runs from the start on; with `archive` finished work goes to PostgreSQL."""

    name: str
    act: Act
    most: int = 3000
    settings: Mapping[str, str] = field(default_factory=dict)
    store_mib: int | None = None
    padding: int = 0
    results_go: bool = False
    standby: bool = False
    whole: bool = False
    archive: bool = False
    agents: int = 3
    slots: int = SLOTS
    forked: bool = False
    short_again: bool = False


async def kill_marshaling(scene: Scene) -> str:
    for _ in range(times := scene.times(5)):
        await scene.crowd.busy()
        scene.stage.marshaling.kill()
        await scene.pause(0, 1.5)
        scene.stage.marshaling.start()
        await scene.ready()
    return f"kill -9 of work marshaling, {times} times"


async def kill_agents(scene: Scene) -> str:
    for number in range(times := scene.times(5)):
        await scene.crowd.busy()
        agent = scene.stage.agents[number % len(scene.stage.agents)]
        scene.stage.kill_agent(agent)
        await scene.pause(0, 3)
        agent.start()
        await scene.ready()
    return f"kill -9 of an agent, {times} times"


async def kill_nats(scene: Scene) -> str:
    for _ in range(times := scene.times(4)):
        await scene.crowd.busy()
        await asyncio.to_thread(scene.stage.nats.kill)
        await scene.pause(0, 3)
        await asyncio.to_thread(scene.stage.nats.start)
        await scene.ready()
    return f"kill -9 of nats-server, {times} times"


async def kill_all(scene: Scene) -> str:
    """Spread over the whole run."""
    share = scene.crowd.most / (1.1 * (times := scene.times(10)))
    for number in range(times):
        await scene.crowd.reach(round(share * scene.chance.uniform(number, number + 1)))
        await scene.crowd.busy()
        await asyncio.to_thread(scene.stage.kill_all)
        await scene.pause(0, 1)
        await asyncio.to_thread(scene.stage.nats.start)
        scene.stage.whole()
        await scene.ready()
    return f"kill -9 of all processes at once, {times} times"


async def halt_agent(scene: Scene) -> str:
    """Past its lease: its jobs are given to others, and its own outcomes come late."""
    for number in range(times := scene.times(3)):
        await scene.crowd.busy()
        agent = scene.stage.agents[number % len(scene.stage.agents)]
        scene.stage.fence(agent)
        agent.send(signal.SIGSTOP)
        await scene.pause(5, 7)
        agent.send(signal.SIGCONT)
    return f"an agent stands still (SIGSTOP) for 5 to 7 s, its leases last 2 s, {times} times"


async def halt_nats(scene: Scene) -> str:
    await scene.crowd.busy()
    os.kill(scene.stage.nats.pid, signal.SIGSTOP)
    await asyncio.sleep(seconds := 60 * scene.scale)
    os.kill(scene.stage.nats.pid, signal.SIGCONT)
    await scene.ready()
    return f"nats-server stands still (SIGSTOP) for {seconds:.0f} s"


async def lose_archive(scene: Scene) -> str:
    """It goes without a farewell while rows are on their way to it, and comes again when all work has ended."""
    archive = scene.stage.archive
    assert archive is not None
    await scene.crowd.busy()
    written = len(await asyncio.to_thread(scene.stage.archive_rows, 1, TAKE_OVER_SECONDS))
    await asyncio.to_thread(archive.stop, signal.SIGQUIT)
    for _ in range(times := scene.times(2)):
        await scene.crowd.busy()
        leader = await scene.leader()
        leader.kill()
        leader.start()
        await scene.ready()
    await scene.crowd.all_ended()
    await asyncio.to_thread(archive.start)
    return (
        f"PostgreSQL stopped (SIGQUIT) when it had {written} rows, started when all work had ended; "
        f"{times} kills of the leader in between; at the end every item was there once"
    )


async def halt_marshaling(scene: Scene) -> str:
    for _ in range(times := scene.times(3)):
        await scene.crowd.busy()
        scene.stage.marshaling.send(signal.SIGSTOP)
        await scene.pause(4, 7)
        scene.stage.marshaling.send(signal.SIGCONT)
        await scene.ready()
    return f"work marshaling stands still (SIGSTOP) for 4 to 7 s, leases last 2 s, {times} times"


async def step_clock(scene: Scene) -> str:
    """The marshaler's calendar jumps; its monotonic clock goes on. In the middle it is killed as well."""
    hours = scene.stage.folder / "clock"
    for number, step in enumerate(("+3600", "-3600", "+0", "-3600", "+3600")[: scene.times(5)]):
        await scene.crowd.busy()
        hours.write_text(f"{step}\n")
        await scene.pause(1.5, 3)
        if number % 2:
            scene.stage.marshaling.kill()
            scene.stage.marshaling.start()
            await scene.ready()
    return "the marshaler's clock jumps by ±1 h and ±2 h, 5 times, with 2 kills in between"


def prepare_clock(stage: Stage) -> None:
    """Raises `CannotPlay`."""
    if FAKETIME is None:
        raise CannotPlay("libfaketime is not installed (Debian: faketime)")
    hours = stage.folder / "clock"
    hours.write_text("+0\n")
    stage.marshaling.environment |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(hours),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


async def repeat_everything(scene: Scene) -> str:
    """Submissions and outcomes come again, also as late ones whose attempt was over long ago."""
    crowd, stage = scene.crowd, scene.stage
    client = await crowd.client()
    again = 0
    for number in range(scene.times(3)):
        await crowd.busy()
        own = [body for body in tuple(crowd.bodies.values()) if "work_id" in body]
        for body in scene.chance.sample(own, min(60, len(own))):
            await crowd.insist(body)
            await crowd.publish(body)
            again += 2
        for _ in range(20):
            body, headers = crowd.item(own_id=False), {"Nats-Msg-Id": f"again-{number}-{again}"}
            await crowd.publish(body, headers)
            await crowd.publish(body, headers)
            again += 1
        stage.kill_agent(stage.agents[number % len(stage.agents)])
        stage.whole()
        again += await _outcomes_again(scene, client)
        await scene.ready()
    return f"{again} submissions and outcomes delivered again, some with the token of an attempt that was over"


async def _outcomes_again(scene: Scene, client: nats_py.NATS) -> int:
    stream = client.jetstream()
    state = (await stream.stream_info("WORK_OUT")).state
    again = 0
    for sequence in scene.chance.choices(range(state.first_seq, state.last_seq + 1), k=80):
        with suppress(NatsError):
            message = await stream.get_msg("WORK_OUT", sequence)
            for _ in range(2):
                await stream.publish(message.subject or "", message.data or b"")
            again += 2
    tokens = await _tokens(stream)
    for view in (await scene.crowd.listed()).values():
        for old in view["attempts"]:
            token = tokens.get((view["work_id"], old["attempt"]))
            if token is not None and old["outcome"] in {"failed", "expired"}:
                told = {
                    "work_id": view["work_id"],
                    "attempt_token": token,
                    "error": {"code": "late", "message": "from an attempt that was over", "retryable": False},
                }
                await stream.publish("compute.work.failed.v1", json.dumps(told).encode())
                again += 1
    return again


async def _tokens(stream: JetStreamContext) -> dict[tuple[str, int], str]:
    """By item and number of the attempt: nobody is told them but the nodes, so they are read from the log."""
    state = (await stream.stream_info("WORK_LOG")).state
    found: dict[tuple[str, int], str] = {}
    for sequence in range(state.first_seq, state.last_seq + 1):
        with suppress(NatsError):
            record = json.loads((await stream.get_msg("WORK_LOG", sequence)).data or b"{}")
            for fact in record.get("facts", ()):
                if fact["fact"] == "assigned":
                    found[(fact["work_id"], fact["attempt"])] = fact["token"]
    return found


async def kill_leader(scene: Scene) -> str:
    """The one that leads, each time; the other goes on."""
    longest = 0.0
    for _ in range(times := scene.times(10)):
        await scene.crowd.busy()
        leader = await scene.leader()
        leader.kill()
        killed = time.monotonic()
        await scene.leader()
        longest = max(longest, time.monotonic() - killed)
        leader.start()
        await scene.ready()
    if longest > TAKE_OVER_SECONDS:
        raise AssertionError(f"a take-over took {longest:.1f} s")
    return f"kill -9 of the marshaler that leads, {times} times; the other led within {longest:.1f} s"


async def kill_standby(scene: Scene) -> str:
    for _ in range(times := scene.times(10)):
        await scene.crowd.busy()
        standby = await scene.standby()
        standby.kill()
        await scene.pause(0, 0.5)
        standby.start()
        await scene.ready()
    return f"kill -9 of the marshaler that stands by, {times} times"


async def kill_both(scene: Scene) -> str:
    for _ in range(times := scene.times(5)):
        await scene.crowd.busy()
        for each in scene.stage.marshalings:
            each.kill()
        await scene.pause(0, 0.5)
        scene.stage.whole()
        await scene.ready()
    return f"kill -9 of both marshalers, {times} times"


async def halt_leader(scene: Scene) -> str:
    """Past its lease, so that the other leads; then it goes on where it stood, and must do no harm."""
    for _ in range(times := scene.times(3)):
        await scene.crowd.busy()
        leader = await scene.leader()
        leader.send(signal.SIGSTOP)
        await scene.leader(but=leader)
        await scene.pause(0, 3)
        leader.send(signal.SIGCONT)
        await scene.ready()
        if not leader.alive():
            raise AssertionError(f"it ended when it was replaced: {leader.output[-2000:]}")
    return f"the marshaler that leads stands still (SIGSTOP) until the other leads and up to 3 s more, {times} times"


async def poison(scene: Scene) -> str:
    """Jobs that end the process of their agent, which is started again each time."""
    crowd, stage = scene.crowd, scene.stage
    share = crowd.most / (poisonous := scene.times(1000))
    await crowd.busy()
    for number in range(poisonous):
        await crowd.reach(round(number * share))
        await crowd.insist(crowd.item(own_id=True, poison=True))
    async with asyncio.timeout(POISON_SECONDS):
        while not await crowd.poison_is_over():
            await asyncio.sleep(0.2)
    return f"{poisonous} poison items among {crowd.most - poisonous} good ones, {len(stage.died())} agents died of them"


async def fill_input(scene: Scene) -> str:
    """Work comes in faster than it is taken: the stream of submissions runs full."""
    crowd = scene.crowd
    crowd.limit_backlog(100_000)
    async with asyncio.timeout(60):
        while not any("maximum bytes" in why for why in crowd.refusals) or "503" not in crowd.refusals:
            await asyncio.gather(*(crowd.publish(crowd.item(own_id=False)) for _ in range(50)))
    await crowd.busy()
    return f"WORK_IN (1 MiB) full: {sum(crowd.refusals.values())} submissions refused"


async def fill_outcomes(scene: Scene) -> str:
    """Outcomes find no room for several leases: a stranger filled their stream while work marshaling stood still."""
    stage, crowd = scene.stage, scene.crowd
    await crowd.busy()
    stage.marshaling.send(signal.SIGSTOP)
    stream = (await crowd.client()).jetstream()
    with suppress(APIError):
        while True:
            await stream.publish("compute.work.completed.v1", b"x" * 50_000)
    await scene.pause(7, 9)
    stage.marshaling.send(signal.SIGCONT)
    await scene.ready()
    return "WORK_OUT (1 MiB) full for 7 to 9 s, leases last 2 s"


async def fill_disk(scene: Scene) -> str:
    """The file system under NATS runs full; later there is room again, and nats-server is started again."""
    stage, crowd = scene.stage, scene.crowd
    await crowd.busy()
    ballast = stage.nats.directory / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(64 * 1024))
            file.flush()
    seconds = 12 * scene.scale
    await asyncio.sleep(seconds)
    ballast.unlink()
    await scene.pause(1, 2)
    # The server keeps its write errors until it is started again, also when there is room.
    await asyncio.to_thread(stage.nats.kill)
    await asyncio.to_thread(stage.nats.start)
    stage.whole()
    await scene.ready()
    return f"disk full under NATS for {seconds:.0f} s, then room again and a restart of nats-server"


async def fill_log(scene: Scene) -> str:
    """The log of decisions runs full (a stranger writes into it); its limit is raised at a restart, and all goes on."""
    stage, crowd = scene.stage, scene.crowd
    await crowd.busy()
    stream = (await crowd.client()).jetstream()
    async with asyncio.timeout(60):
        while "log_full" not in stage.marshaling.output:
            for size in (100_000, 1000, 10):
                with suppress(APIError):
                    await stream.publish("compute.work.log.v1", b"x" * size)
    await scene.pause(2, 4)
    stage.marshaling.kill()
    stage.marshaling.environment["WORK_LOG_MAX_MB"] = "64"
    stage.marshaling.start()
    await scene.ready()
    return "WORK_LOG (2 MiB) full for 2 to 4 s, then raised to 64 MiB at a restart"


SHORT_LEASE = {"WORK_LEASE_SECONDS": "2"}

ROWS = (
    Row(name="marshaling killed", act=kill_marshaling),
    Row(name="agents killed", act=kill_agents),
    Row(name="nats-server killed", act=kill_nats, standby=True),
    Row(name="all killed at once", act=kill_all, standby=True, most=20_000, whole=True),
    Row(name="agent stopped past its leases", act=halt_agent, settings=SHORT_LEASE),
    Row(name="marshaling stopped past all leases", act=halt_marshaling, settings=SHORT_LEASE),
    Row(name="NATS unreachable", act=halt_nats),
    Row(name="archive unreachable", act=lose_archive, standby=True, whole=True, archive=True),
    Row(name="clock steps of an hour", act=step_clock),
    Row(name="duplicate deliveries", act=repeat_everything),
    Row(name="leader killed", act=kill_leader, standby=True, most=6000),
    Row(name="standby killed", act=kill_standby, standby=True, most=9000),
    Row(name="leader and standby killed", act=kill_both, standby=True),
    Row(name="leader stopped past its lease", act=halt_leader, standby=True, settings=SHORT_LEASE),
    Row(
        name="poison items among good ones",
        act=poison,
        most=11_000,
        whole=True,
        agents=24,
        slots=10,
        forked=True,
        short_again=True,
        settings={"WORK_CHECKPOINT_RECORDS": "5000"},
    ),
    Row(
        name="submissions run full",
        act=fill_input,
        most=4000,
        settings={"WORK_IN_MAX_MB": "1", "WORK_OPEN_MOST": "300"},
        padding=3000,
    ),
    Row(name="outcomes run full", act=fill_outcomes, settings=SHORT_LEASE | {"WORK_OUT_MAX_MB": "1"}, results_go=True),
    Row(name="log runs full", act=fill_log, most=4000, settings={"WORK_LOG_MAX_MB": "2"}),
    Row(name="disk full under NATS", act=fill_disk, store_mib=48),
)

__all__ = ["ROWS", "Row", "Scene", "prepare_clock"]
