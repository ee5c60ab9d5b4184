"""The HTTP door: which route leads to which method."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from libs.common.contracts.base import Identifier
from libs.common.contracts.node_registry import NodeQuery, NodesFound, NodeView
from services.node_registry.use_cases import NodeRegistry

Name = Annotated[str, Query(max_length=32)]
Ids = Annotated[list[Identifier], Query(max_length=1000)]
Names = Annotated[list[str], Query(max_length=16)]


def router(registry: NodeRegistry) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/nodes", tags=["nodes"])

    @routes.post("/query", response_model=NodesFound)
    async def query(query: NodeQuery) -> Response:
        """Which nodes match."""
        return _as_it_is(await registry.query(query))

    @routes.get("", response_model=NodesFound)
    async def nodes(
        requires_gpu: bool | None = None,
        tier: Name | None = None,
        min_tier: Name | None = None,
        online_only: bool = False,
        state: Names | None = None,
        node_id: Ids | None = None,
        model_name: Annotated[str, Query(min_length=1, max_length=256)] | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Identifier | None = None,
        sort: Name = "node_id",
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
            )
        )
        return _as_it_is(found)

    @routes.get("/{node_id}")
    async def get(node_id: str) -> NodeView:
        return await registry.get(node_id)

    return routes


def _as_it_is(found: NodesFound) -> Response:
    """A page of large machines is large: it is a valid answer already and need not be judged again."""
    return Response(found.model_dump_json(), media_type="application/json")
