"""What stands before PostgREST in Supabase: it takes requests to /rest/v1 that carry a known `apikey`.

Run as a program: `python -m tests.supabase_gateway PORT UPSTREAM KEY…`
"""

import sys
from collections.abc import Mapping

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

METHODS = ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"]
NOT_PASSED_ON = frozenset({"host", "content-length", "connection", "transfer-encoding", "content-encoding"})


def gateway(upstream: str, keys: frozenset[str]) -> FastAPI:
    app = FastAPI()
    client = httpx.AsyncClient(base_url=upstream)

    @app.api_route("/rest/v1/{path:path}", methods=METHODS)
    async def rest(path: str, request: Request) -> Response:
        if request.headers.get("apikey") not in keys:
            return Response('{"message":"No API key found in request"}', 401, media_type="application/json")
        try:
            answer = await client.request(
                request.method,
                f"/{path}",
                params=request.query_params.multi_items(),
                headers=_passed_on(request.headers),
                content=await request.body(),
            )
        except httpx.HTTPError:
            return Response("<html>502 Bad Gateway</html>", 502, media_type="text/html")
        return Response(answer.content, answer.status_code, _passed_on(answer.headers))

    return app


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in NOT_PASSED_ON}


if __name__ == "__main__":
    port, upstream, *keys = sys.argv[1:]
    uvicorn.run(gateway(upstream, frozenset(keys)), host="127.0.0.1", port=int(port), log_level="warning")
