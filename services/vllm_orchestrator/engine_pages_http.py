"""Reads what engines show of themselves over HTTP."""

import httpx

from libs.common.errors import Unavailable

ANSWER_SECONDS = 2.0


class HttpEnginePages:
    """See `EnginePages`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def metrics(self, url: str) -> str:
        try:
            answer = await self._client.get(f"{url}/metrics", timeout=ANSWER_SECONDS)
            answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{url}/metrics does not answer: {str(error) or type(error).__name__}") from error
        return answer.text
