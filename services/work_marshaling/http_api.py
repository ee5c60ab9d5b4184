"""The HTTP door: which route leads to which method."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import AwareDatetime
from starlette.responses import Response

from libs.common.contracts.base import Identifier
from libs.common.contracts.work_asked import AskedItem
from libs.common.contracts.work_blacklist import Blacklist, BlacklistEntry, BlacklistNode
from libs.common.contracts.work_events import RunAgain
from libs.common.contracts.work_explained import WorkExplained
from libs.common.contracts.work_leading import HandedRequest
from libs.common.contracts.work_marshaling import (
    CancelWork,
    SubmitAnswers,
    SubmitMany,
    WorkAccepted,
    WorkLookup,
    WorkStats,
    WorkStatus,
    WorkView,
)
from libs.common.contracts.work_records import WorkPage, WorkResult
from libs.common.kit.http_within import answered_elsewhere
from services.work_marshaling.again import Again
from services.work_marshaling.asking import Asking
from services.work_marshaling.blacklisting import Blacklisting
from services.work_marshaling.explanations import Explanations
from services.work_marshaling.following import Event, Following
from services.work_marshaling.handing import Handing
from services.work_marshaling.model import Filter
from services.work_marshaling.use_cases import WorkMarshaling

Wait = Annotated[float, Query(ge=0, le=60, description="How long to wait for the item's end, in seconds.")]
Limit = Annotated[int, Query(ge=1, le=500)]
Statuses = Annotated[list[WorkStatus] | None, Query(max_length=8)]
LastEventId = Annotated[str | None, Header(max_length=128, description="Go on after this event, if it is known.")]
Since = Annotated[
    AwareDatetime | None, Query(description="Only items that were submitted then or later; with its offset.")
]
Cursor = Annotated[str | None, Query(max_length=4096, description="As it came with the page before.")]
Text = Annotated[str | None, Query(max_length=256)]
Reason = Annotated[str, Query(max_length=512)]
WorkId = Annotated[str, Path(min_length=1, max_length=128)]
NodeId = Annotated[Identifier, Path()]
Sequence = Annotated[int, Path(ge=1, le=2**63 - 1)]


def router(
    marshaling: WorkMarshaling,
    asking: Asking,
    again: Again,
    following: Following,
    explanations: Explanations,
    blacklisting: Blacklisting,
    handing: Handing,
) -> APIRouter:
    by_leader = answered_elsewhere(partial(_by_leader, handing))
    routes = APIRouter(prefix="/api/v1", tags=["work"])
    routes.include_router(_submitted(marshaling))
    routes.include_router(_listed(asking, by_leader))
    routes.include_router(_told(marshaling, asking, by_leader))
    routes.include_router(_repeated(again, by_leader))
    routes.include_router(_followed(following, by_leader))
    routes.include_router(_explained(explanations, by_leader))
    routes.include_router(_blacklisted(blacklisting, by_leader))
    return routes


def _submitted(marshaling: WorkMarshaling) -> APIRouter:
    """What any instance answers itself."""
    routes = APIRouter()

    @routes.post("/work/submit", status_code=202)
    async def submit(item: AskedItem) -> WorkAccepted:
        """Submit an item. When this is answered, the item is on disk and counts once."""
        return await marshaling.submit(item)

    @routes.post("/work/submit-batch", status_code=202)
    async def submit_batch(items: SubmitMany) -> SubmitAnswers:
        """Submit up to 10,000 items, each answered on its own."""
        return await marshaling.submit_many(items)

    return routes


def _listed(asking: Asking, by_leader: type[APIRoute]) -> APIRouter:
    """Before the routes of one item: `dead` is none."""
    routes = APIRouter(route_class=by_leader)

    @routes.get("/work")
    async def find(
        status: Statuses = None,
        work_type: Text = None,
        model_name: Text = None,
        node_id: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> WorkPage:
        """Items that match, a page at a time: those at hand, the newest first, then those in the archive."""
        wanted = Filter(
            status=None if status is None else frozenset(status),
            work_type=work_type,
            model_name=model_name,
            node_id=node_id,
            since=since,
        )
        return await asking.find(wanted, limit=limit, cursor=cursor)

    @routes.get("/work/dead")
    async def dead(
        work_type: Text = None,
        model_name: Text = None,
        node_id: Text = None,
        since: Since = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> WorkPage:
        """Items that no attempt could complete, a page at a time."""
        wanted = Filter(
            status=frozenset({WorkStatus.DEAD}),
            work_type=work_type,
            model_name=model_name,
            node_id=node_id,
            since=since,
        )
        return await asking.find(wanted, limit=limit, cursor=cursor)

    return routes


def _repeated(again: Again, by_leader: type[APIRoute]) -> APIRouter:
    routes = APIRouter(route_class=by_leader)

    @routes.post("/work/{work_id}/retry", status_code=202)
    async def retry(work_id: WorkId, asked: RunAgain | None = None) -> WorkAccepted:
        """Run an ended item again, as a new item. 409 when it has not ended, or its payload is gone."""
        return await again.retry(work_id, asked or RunAgain())

    @routes.post("/work/dead/{work_id}/replay", status_code=202)
    async def replay(work_id: WorkId, asked: RunAgain | None = None) -> WorkAccepted:
        """Run a dead item again, as a new item. 409 when it is not dead, or its payload is gone."""
        return await again.replay(work_id, asked or RunAgain())

    return routes


def _followed(following: Following, by_leader: type[APIRoute]) -> APIRouter:
    routes = APIRouter(route_class=by_leader)

    @routes.get(
        "/work/{work_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events(work_id: WorkId, last_event_id: LastEventId = None) -> StreamingResponse:
        """An item's state and progress as server-sent events, to its end: `state`, `progress`, `lost`."""
        lines = (_lines(event) async for event in await following.follow(work_id, last_event_id))
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return routes


def _lines(event: Event) -> str:
    if event.message is None:
        return ": still here\n\n"
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.message.model_dump_json()}\n\n"


def _told(marshaling: WorkMarshaling, asking: Asking, by_leader: type[APIRoute]) -> APIRouter:
    routes = APIRouter(route_class=by_leader)

    @routes.get("/work/by-sequence/{sequence}")
    async def by_sequence(sequence: Sequence) -> WorkView:
        """The item that a durable receipt of NATS speaks of."""
        return await asking.look_up(WorkLookup(sequence=sequence))

    @routes.get("/work/{work_id}")
    async def get(work_id: WorkId) -> WorkView:
        """An item: its state, its attempts, its error; its result when it is small."""
        return await asking.look_up(WorkLookup(work_id=work_id))

    @routes.get("/work/{work_id}/result")
    async def result(work_id: WorkId, wait_seconds: Wait = 0.0) -> WorkResult:
        """How an item ended. 404 as long as it has not, after waiting so long for it."""
        return await asking.result(work_id, wait_seconds)

    @routes.delete("/work/{work_id}")
    async def cancel(work_id: WorkId, reason: Reason = "") -> WorkView:
        """Cancel an item in any state. 409 when it has ended."""
        return await marshaling.cancel(CancelWork(work_id=work_id, reason=reason))

    @routes.get("/stats")
    async def stats() -> WorkStats:
        """The queue in numbers."""
        return await marshaling.stats()

    return routes


def _explained(explanations: Explanations, by_leader: type[APIRoute]) -> APIRouter:
    routes = APIRouter(route_class=by_leader)

    @routes.get("/work/{work_id}/explain")
    async def explain(work_id: WorkId) -> WorkExplained:
        """Why an item waits: each node and the clauses that exclude it, its place in the queue, what would help."""
        return await explanations.explain(WorkLookup(work_id=work_id))

    return routes


def _blacklisted(blacklisting: Blacklisting, by_leader: type[APIRoute]) -> APIRouter:
    routes = APIRouter(prefix="/blacklist", route_class=by_leader)

    @routes.get("")
    async def listed() -> Blacklist:
        """Nodes that are given nothing because they fail, and those on parole."""
        return await blacklisting.entries()

    @routes.get("/{node_id}")
    async def one(node_id: NodeId) -> Blacklist:
        """What is on it of one node, whole or for single models. 404 when nothing is."""
        return await blacklisting.of_node(node_id)

    @routes.put("/{node_id}")
    async def add(node_id: NodeId, asked: BlacklistNode) -> BlacklistEntry:
        """Put a node on the blacklist by hand."""
        return await blacklisting.add(node_id, asked)

    @routes.delete("/{node_id}")
    async def remove(node_id: NodeId) -> Blacklist:
        """Take a node off the blacklist: it is on parole. 404 when it is not on it."""
        return await blacklisting.remove(node_id)

    return routes


async def _by_leader(handing: Handing, request: Request) -> Response | None:
    """What only the leader can answer it is asked, unless we are it."""
    asked = HandedRequest.model_validate(
        {
            "method": request.method,
            "path": request.scope["path"],
            "query": request.scope["query_string"].decode("latin-1"),
            "body": (await request.body()).decode("utf-8", errors="replace"),
        }
    )
    told = await handing.request(asked)
    return None if told is None else Response(told.body, told.status, told.headers)
