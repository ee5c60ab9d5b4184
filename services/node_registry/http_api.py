"""The HTTP door: which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from libs.common.contracts.base import Identifier, Written
from libs.common.contracts.node_administration import (
    DrainNode,
    DrainReason,
    NodeDrained,
    NodeHistory,
    NodeRegistration,
    NodesCounted,
    RestHeartbeat,
)
from libs.common.contracts.node_registry import NodeQuery, NodesFound, NodeView
from services.node_registry.administration import Administration
from services.node_registry.publishing import Publishing
from services.node_registry.use_cases import NodeRegistry

Name = Annotated[str | None, Query(max_length=32)]
Ids = Annotated[list[Identifier] | None, Query(max_length=1000)]
Names = Annotated[list[str] | None, Query(max_length=16)]


def router(registry: NodeRegistry, administration: Administration, publishing: Publishing) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")
    routes.include_router(_asked(registry, publishing))
    routes.include_router(_told(administration))
    routes.include_router(_watched(registry, publishing))
    return routes


def _asked(registry: NodeRegistry, publishing: Publishing) -> APIRouter:
    routes = APIRouter(prefix="/nodes", tags=["nodes"])

    @routes.post("/query", response_model=NodesFound)
    async def query(query: NodeQuery) -> Response:
        """Which nodes match."""
        return _as_it_is(await registry.query(query))

    @routes.get("", response_model=NodesFound)
    async def nodes(
        requires_gpu: bool | None = None,
        tier: Name = None,
        min_tier: Name = None,
        online_only: bool = False,
        state: Names = None,
        node_id: Ids = None,
        model_name: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[Identifier | None, Query()] = None,
        sort: Annotated[str, Query(max_length=32)] = "node_id",
        draining: bool | None = None,
    ) -> Response:
        """All nodes, or those that match, a page at a time."""
        found = await registry.query(
            NodeQuery(
                requires_gpu=requires_gpu,
                tier=tier,
                min_tier=min_tier,
                online_only=online_only,
                states=None if state is None else tuple(state),
                node_ids=None if node_id is None else tuple(node_id),
                model_name=model_name,
                limit=limit,
                after=after,
                sort=sort,
                draining=draining,
            )
        )
        return _as_it_is(found)

    @routes.get("/{node_id}")
    async def get(node_id: str) -> NodeView:
        return await registry.get(node_id)

    @routes.get("/{node_id}/history")
    async def history(
        node_id: Identifier,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        after: Annotated[str | None, Query(max_length=4096)] = None,
    ) -> NodeHistory:
        """What happened to a node, newest first, a page at a time; also of one that is forgotten."""
        return await publishing.history(node_id, limit=limit, after=after)

    return routes


def _told(administration: Administration) -> APIRouter:
    routes = APIRouter(prefix="/nodes", tags=["administration"])

    @routes.post("/register")
    async def register(registration: NodeRegistration) -> NodeView:
        """Tell of a machine that has no detector of its own."""
        return await administration.register(registration)

    @routes.post("/{node_id}/heartbeat")
    async def beat(node_id: Identifier, beat: RestHeartbeat | None = None) -> NodeView:
        """A machine that cannot speak NATS is alive."""
        return await administration.beat(node_id, beat or RestHeartbeat())

    @routes.post("/{node_id}/drain")
    async def drain(node_id: Identifier, why: DrainReason | None = None) -> NodeDrained:
        """Give it nothing new, from now on and across restarts."""
        return await administration.drain(DrainNode(node_id=node_id, reason=why.reason if why else ""))

    @routes.post("/{node_id}/undrain")
    async def undrain(node_id: Identifier, why: DrainReason | None = None) -> NodeDrained:
        """Let it have work again."""
        reason = why.reason if why else ""
        return await administration.drain(DrainNode(node_id=node_id, draining=False, reason=reason))

    @routes.delete("/{node_id}", status_code=204)
    async def forget(node_id: Identifier) -> None:
        """Forget a node that is gone."""
        await administration.forget(node_id)

    return routes


def _watched(registry: NodeRegistry, publishing: Publishing) -> APIRouter:
    routes = APIRouter(tags=["nodes"])

    @routes.get("/stats")
    async def stats() -> NodesCounted:
        """The mesh in numbers."""
        return publishing.counted(await registry.count())

    @routes.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
    async def events() -> StreamingResponse:
        """Every change of a node's state from now on, as server-sent events."""
        lines = (f"event: status\ndata: {change.model_dump_json()}\n\n" async for change in registry.changes())
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return routes


def _as_it_is(found: Written[NodesFound]) -> Response:
    """A page of large machines is large: it is a valid answer already and need not be judged again."""
    return Response(found.json, media_type="application/json")
