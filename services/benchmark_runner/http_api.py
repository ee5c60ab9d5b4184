"""Which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Path

from libs.common.contracts.benchmark_runner import BenchmarkRequest, Benchmarks, BenchmarkView
from services.benchmark_runner.use_cases import BenchmarkRunner

Id = Annotated[str, Path(min_length=1, max_length=64, description="a benchmark's id")]


def routes(runner: BenchmarkRunner) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["benchmarks"])

    @router.post("/benchmark/run", summary="Load an engine and measure it; with `background` answered at once.")
    async def run(request: BenchmarkRequest) -> BenchmarkView:
        return await runner.start(request)

    @router.get("/benchmarks", summary="All runs, newest first.")
    async def list_all() -> Benchmarks:
        return await runner.list()

    @router.get("/benchmark/{benchmark_id}", summary="One run and its result.")
    async def look(benchmark_id: Id) -> BenchmarkView:
        return await runner.look(benchmark_id)

    @router.delete("/benchmark/{benchmark_id}", summary="Cancel a run that waits or runs.")
    async def cancel(benchmark_id: Id) -> BenchmarkView:
        return await runner.cancel(benchmark_id)

    return router
