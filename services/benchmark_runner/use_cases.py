"""One run after the other: find the engine, warm it up, load it, report."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from libs.common.clock import Clock
from libs.common.contracts.benchmark_runner import BenchmarkRequest, Benchmarks, BenchmarkState, BenchmarkView
from libs.common.contracts.node_registry import NodeWorkload
from libs.common.errors import Conflict, MeshError, NotFound, Unavailable
from libs.inference.fleet import Fleet, Placed
from services.benchmark_runner.load import Load
from services.benchmark_runner.model import Sample, Target
from services.benchmark_runner.prompts import FIRST_GUESS_TOKENS_PER_WORD, prompt, tokens_per_word, words_for
from services.benchmark_runner.statistics import result_of
from services.benchmark_runner.store import Reports

log = structlog.get_logger()

OVER = (BenchmarkState.COMPLETED, BenchmarkState.FAILED, BenchmarkState.CANCELLED)
WARM_UP = -1
REFUSED = "http_401"


@dataclass(slots=True, eq=False)
class _Run:
    view: BenchmarkView
    samples: list[Sample] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, **changes: object) -> None:
        self.view = self.view.model_copy(update=changes)


class BenchmarkRunner:
    """Two runs at once would measure each other, so they queue. `make_id` gives each its name."""

    def __init__(
        self, *, clock: Clock, load: Load, reports: Reports, make_id: Callable[[], str], queue_limit: int
    ) -> None:
        self._clock = clock
        self._load = load
        self._reports = reports
        self._make_id = make_id
        self._queue: asyncio.Queue[_Run] = asyncio.Queue(maxsize=queue_limit)
        self._runs: dict[str, _Run] = {}
        self._fleet = Fleet()

    async def recall(self) -> None:
        """Know the runs of earlier times again."""
        for view in await self._reports.load():
            run = _Run(view)
            run.over.set()
            self._runs.setdefault(view.benchmark_id, run)

    async def hear(self, workload: NodeWorkload) -> None:
        self._fleet.hear(workload, self._clock.monotonic())

    async def start(self, request: BenchmarkRequest) -> BenchmarkView:
        """Queue a run; without `background` wait for its end. Raises `Unavailable`, also when too many wait."""
        if request.base_url is None:
            self._engine_for(request.model_name)
        run = _Run(
            BenchmarkView(
                benchmark_id=self._make_id(),
                state=BenchmarkState.QUEUED,
                request=request,
                created_at=self._clock.now(),
            )
        )
        try:
            self._queue.put_nowait(run)
        except asyncio.QueueFull:
            raise Unavailable(f"{self._queue.maxsize} benchmark runs wait already", limit=self._queue.maxsize) from None
        self._runs[run.view.benchmark_id] = run
        if not request.background:
            await run.over.wait()
        return run.view

    async def look(self, benchmark_id: str) -> BenchmarkView:
        """Raises `NotFound`."""
        return self._found(benchmark_id).view

    async def list(self) -> Benchmarks:
        """Newest first."""
        views = sorted((run.view for run in self._runs.values()), key=lambda view: view.created_at, reverse=True)
        return Benchmarks(benchmarks=tuple(views))

    async def cancel(self, benchmark_id: str) -> BenchmarkView:
        """End a run that waits or runs. Raises `NotFound`, `Conflict` for one that is over."""
        run = self._found(benchmark_id)
        if run.view.state in OVER:
            raise Conflict(f"benchmark {benchmark_id} is {run.view.state} already", state=run.view.state)
        if run.task is None:
            await self._end(run, BenchmarkState.CANCELLED)
        else:
            run.task.cancel()
        await run.over.wait()
        return run.view

    async def work(self) -> None:
        """Until cancelled: one run after the other."""
        while True:
            run = await self._queue.get()
            if run.view.state in OVER:
                continue
            run.task = asyncio.create_task(self._run(run))
            try:
                await asyncio.shield(run.task)
            except asyncio.CancelledError:
                if not run.task.cancelled():
                    run.task.cancel()
                    await asyncio.gather(run.task, return_exceptions=True)
                    raise
                # Cancelled before its first step.
                await self._end(run, BenchmarkState.CANCELLED)

    async def _run(self, run: _Run) -> None:
        run.change(state=BenchmarkState.RUNNING, started_at=self._clock.now())
        try:
            target = await self._target(run)
            words = await self._warm_up(run.view.request, target)
            began = self._clock.monotonic()
            await self._users(run, target, words)
            run.change(result=result_of(run.samples, self._clock.monotonic() - began))
        except MeshError as error:
            await self._end(run, BenchmarkState.FAILED, error.message)
        except asyncio.CancelledError:
            await self._end(run, BenchmarkState.CANCELLED)
        else:
            await self._end(run, BenchmarkState.COMPLETED)

    async def _target(self, run: _Run) -> Target:
        request = run.view.request
        if request.base_url is not None:
            url = request.base_url.rstrip("/").removesuffix("/v1")
            target = Target(base_url=url, model_name=request.model_name or "", ours=self._is_ours(url))
            name = request.model_name or await self._load.first_model(target)
            run.change(base_url=url, model_name=name)
            return replace(target, model_name=name)
        placed = self._engine_for(request.model_name)
        engine = placed.engine
        url = engine.far_url or engine.url or ""
        run.change(base_url=url, model_name=engine.model_name, node_id=placed.node_id, engine=engine)
        return Target(base_url=url, model_name=engine.model_name, ours=self._is_ours(url))

    def _is_ours(self, url: str) -> bool:
        """A deployment started the engine there: other machines may reach no others, and those have no key of ours."""
        engines = [placed.engine for placed in self._fleet.engines(self._clock.monotonic())]
        return any(url in (engine.url, engine.far_url) for engine in engines if engine.far_url)

    def _engine_for(self, model_name: str | None) -> Placed:
        placed = self._fleet.engines(self._clock.monotonic(), model_name=model_name)
        usable = [each for each in placed if each.usable]
        if not usable:
            wanted = f"model {model_name}" if model_name else "any model"
            raise Unavailable(f"no ready engine for {wanted} is known", known_engines=len(placed))
        return max(usable, key=lambda each: each.free_slots)

    async def _warm_up(self, request: BenchmarkRequest, target: Target) -> int:
        """One request that is not counted; it also tells how many tokens a word of ours has there."""
        words = words_for(request.prompt_tokens, FIRST_GUESS_TOKENS_PER_WORD)
        sample = await self._one(request, target, words, WARM_UP)
        if sample.error == REFUSED:
            raise Unavailable(f"{target.base_url} wants a key that it was not told: see ENGINE_API_KEY")
        if sample.error is not None:
            raise Unavailable(f"{target.base_url} does not serve: {sample.error}")
        return words_for(request.prompt_tokens, tokens_per_word(words, sample.prompt_tokens))

    async def _users(self, run: _Run, target: Target, words: int) -> None:
        request = run.view.request
        numbers = iter(range(request.requests))

        async def user() -> None:
            for number in numbers:
                run.samples.append(await self._one(request, target, words, number))
                run.change(requests_done=len(run.samples))

        async with asyncio.TaskGroup() as users:
            for _ in range(min(request.concurrency, request.requests)):
                users.create_task(user())

    async def _one(self, request: BenchmarkRequest, target: Target, words: int, number: int) -> Sample:
        return await self._load.one(
            target,
            prompt(words, seed=request.seed, number=number),
            max_tokens=request.max_tokens,
            ignore_eos=request.ignore_eos,
            seed=request.seed + max(number, 0),
            timeout=request.timeout_seconds,
        )

    async def _end(self, run: _Run, state: BenchmarkState, problem: str | None = None) -> None:
        run.change(state=state, problem=problem, ended_at=self._clock.now(), requests_done=len(run.samples))
        log.info("benchmark_ended", benchmark=run.view.benchmark_id, state=state.value, problem=problem)
        try:
            await self._reports.keep(run.view)
        except Unavailable as error:
            log.error("report_not_kept", benchmark=run.view.benchmark_id, reason=error.message)
        run.over.set()

    def _found(self, benchmark_id: str) -> _Run:
        run = self._runs.get(benchmark_id)
        if run is None:
            raise NotFound(f"there is no benchmark {benchmark_id!r}", benchmark_id=benchmark_id)
        return run
