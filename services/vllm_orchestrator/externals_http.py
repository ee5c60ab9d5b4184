"""Asks engines that somebody else runs whether they serve a model, over OpenAI's HTTP interface."""

import httpx

from libs.common.errors import Malformed
from libs.inference.openai import MODELS, models_in

ANSWER_SECONDS = 2.0


class HttpExternals:
    """See `Externals`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def problem(self, url: str, model_name: str) -> str:
        try:
            answer = await self._client.get(url + MODELS, timeout=ANSWER_SECONDS)
            answer.raise_for_status()
            models = models_in(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL, Malformed, ValueError) as error:
            return f"{url}{MODELS} does not answer as an engine does: {str(error) or type(error).__name__}"
        return "" if model_name in models else f"it serves {', '.join(models)[:200]}, not {model_name}"
