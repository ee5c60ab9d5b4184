"""Engines that others ask this node to run: each begun once, found again after a restart, ended when asked."""

import asyncio
from collections.abc import Callable
from typing import NoReturn

import structlog

from libs.common.contracts.engine_hosting import (
    EngineKey,
    EngineLog,
    HostedEngine,
    HostedEngines,
    LookAtEngines,
    ReadEngineLog,
    StartEngine,
    StopEngine,
)
from libs.common.errors import Conflict, NotFound
from services.node_agent.hosted import Hosted, HostedFiles, HostedFolders

log = structlog.get_logger()

REMEMBERED = 50
SHOWN = 500
STOPPING = "the node agent was told to stop"

Make = Callable[[StartEngine, HostedFiles], Hosted]
Key = tuple[str, int, int, int]


class Hosting:
    """`shown` and `hidden` are told of engines that come and go, for those who give them work."""

    def __init__(
        self,
        folders: HostedFolders,
        make: Make,
        *,
        node_id: str,
        boot_id: str,
        shown: Callable[[Hosted], None],
        hidden: Callable[[Hosted], None],
    ) -> None:
        self._folders = folders
        self._make = make
        self._node_id = node_id
        self._boot_id = boot_id
        self._shown = shown
        self._hidden = hidden
        self._engines: dict[Key, Hosted] = {}
        self._refused: set[Key] = set()
        self._watched: dict[Key, asyncio.Task[None]] = {}
        self._ending: dict[Key, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()
        self._recovered = asyncio.Event()
        self._broke: asyncio.Queue[BaseException] = asyncio.Queue()

    # What others ask

    async def start(self, asked: StartEngine) -> HostedEngine:
        """Raises `Forbidden`, `Malformed`, `Conflict` for what a later generation took the place of, `Unavailable`."""
        await self._recovered.wait()
        async with self._changing:
            known = self._engines.get(_key(asked))
            if known is not None:
                return known.tell()
            self._refuse_outdated(asked)
            for other in self._alive_before(asked):
                await other.end(f"generation {asked.generation} takes its place", 10.0)
            return await self._begun(asked)

    async def stop(self, asked: StopEngine) -> HostedEngines:
        await self._recovered.wait()
        key = _key(asked)
        async with self._changing:
            self._refused.add(key)
            found = self._engines.get(key)
        if found is not None and key in self._ending:
            found.hurry(asked.drain_seconds)
        elif found is not None:
            ending = found.end("it was asked to end", asked.grace_seconds, asked.drain_seconds)
            self._ending[key] = asyncio.create_task(ending, name=f"end of {asked.instance}")
            self._ending[key].add_done_callback(lambda _: self._ending.pop(key))
            await asyncio.sleep(0)
        return await self.look(LookAtEngines(instance=asked.instance))

    async def look(self, asked: LookAtEngines) -> HostedEngines:
        await self._recovered.wait()
        told = [each.tell() for each in self._engines.values() if asked.instance in (None, each.asked.instance)]
        return HostedEngines(node_id=self._node_id, boot_id=self._boot_id, engines=tuple(told[-SHOWN:]))

    async def read_log(self, asked: ReadEngineLog) -> EngineLog:
        """Raises `NotFound`."""
        await self._recovered.wait()
        found = self._engines.get(_key(asked))
        if found is None:
            raise NotFound(f"there is no engine {asked.instance}, generation {asked.generation}, on this node")
        text = found.log(asked.characters)
        return EngineLog(text=text, **asked.model_dump(include=set(EngineKey.model_fields)))

    # Its own life

    async def run(self) -> NoReturn:
        """Until cancelled. Raises what ended a watch that must not end so."""
        for files in self._folders.kept():
            begun = files.begun()
            if begun is None:
                self._folders.forget(files)
                continue
            engine = self._make(begun.asked, files)
            self._engines[_key(begun.asked)] = engine
            if files.ended() is None and await engine.adopt():
                self._watch(engine)
        self._recovered.set()
        raise await self._broke.get()

    async def close(self) -> None:
        """End all of them."""
        await asyncio.gather(*(each.end(STOPPING, 5.0) for each in self._engines.values()))
        for watching in self._watched.values():
            watching.cancel()
        await asyncio.gather(*self._watched.values(), *self._ending.values(), return_exceptions=True)

    async def _begun(self, asked: StartEngine) -> HostedEngine:
        files = self._folders.files(asked)
        engine = self._make(asked, files)
        try:
            await engine.start()
        except BaseException:
            self._folders.forget(files)
            raise
        self._engines[_key(asked)] = engine
        self._watch(engine)
        self._forget_some()
        return engine.tell()

    def _refuse_outdated(self, asked: StartEngine) -> None:
        newest = max((each.generation for each in self._same_place(asked)), default=0)
        if newest > asked.generation or _key(asked) in self._refused:
            raise Conflict(f"generation {asked.generation} of {asked.instance} is over here", field="generation")

    def _same_place(self, asked: EngineKey) -> list[StartEngine]:
        place = (asked.instance, asked.replica, asked.rank)
        alike = (each.asked for each in self._engines.values())
        return [each for each in alike if (each.instance, each.replica, each.rank) == place]

    def _alive_before(self, asked: StartEngine) -> list[Hosted]:
        earlier = (self._engines[_key(each)] for each in self._same_place(asked))
        return [each for each in earlier if _key(each.asked) in self._watched]

    def _watch(self, engine: Hosted) -> None:
        self._shown(engine)
        key = _key(engine.asked)
        self._watched[key] = asyncio.create_task(self._watching(engine), name=f"engine {engine.asked.instance}")

    async def _watching(self, engine: Hosted) -> None:
        try:
            await engine.watch()
        except Exception as error:  # noqa: BLE001  # raised again in `run`, which ends the process
            self._broke.put_nowait(error)
        finally:
            self._hidden(engine)
            self._watched.pop(_key(engine.asked), None)

    def _forget_some(self) -> None:
        over = [key for key in self._engines if key not in self._watched]
        for key in over[: max(0, len(over) - REMEMBERED)]:
            engine = self._engines.pop(key)
            self._folders.forget(self._folders.files(engine.asked))


def _key(asked: EngineKey) -> Key:
    return (asked.instance, asked.replica, asked.generation, asked.rank)
