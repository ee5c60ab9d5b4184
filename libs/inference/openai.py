"""From a work item to a request in OpenAI's words, and from the engine's answer to a result. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from libs.common.errors import Malformed

WorkKind = Literal["inference", "chat", "embedding"]

DEFAULT_MAX_TOKENS = 256
"""Tokens to generate for an item that does not say: an engine without a limit would fill its whole context."""
LARGEST_MAX_TOKENS = 1_000_000
MOST_MESSAGES = 1000
MOST_INPUTS = 2048

COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"

ROLES = ("system", "developer", "user", "assistant", "tool")
_OURS = ("model", "stream", "stream_options", "n", "best_of")
_NUMBERS = {"temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What to post where. `stream`: the answer comes as server-sent events."""

    path: str
    body: Mapping[str, Any]
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An engine's whole answer. `timings` is llama.cpp's own account, where it gives one."""

    text: str = ""
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    timings: Mapping[str, Any] | None = None
    embeddings: Sequence[Sequence[float]] | None = None


def request_for(kind: WorkKind, payload: Mapping[str, Any], model_name: str) -> EngineRequest:
    """The request an item's payload asks for.

    `inference` takes `prompt` (text) or `messages`, `chat` takes `messages`, `embedding` takes `input` (a text or
    several). What else the payload holds is passed on to the engine as it is. Raises `Malformed`, naming the field.
    """
    if kind == "embedding":
        return _embedding(payload, model_name)
    subject: dict[str, Any]
    if kind == "inference" and "messages" not in payload:
        path, subject = COMPLETIONS, {"prompt": _prompt(payload)}
    else:
        path, subject = CHAT_COMPLETIONS, {"messages": _messages(kind, payload)}
    stream = _flag(payload, "stream")
    passed_on = {name: value for name, value in payload.items() if name not in (*_OURS, "messages", "prompt")}
    body = {**passed_on, **subject, **_limits(payload), "model": model_name, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return EngineRequest(path=path, body=body, stream=stream)


def _embedding(payload: Mapping[str, Any], model_name: str) -> EngineRequest:
    given = payload.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise Malformed("`input` must be a text or a list of texts, none of them empty", field="input")
    if len(texts) > MOST_INPUTS:
        raise Malformed(f"`input` holds {len(texts)} texts; {MOST_INPUTS} are the limit", field="input")
    return EngineRequest(path=EMBEDDINGS, body={"input": texts, "model": model_name})


def _prompt(payload: Mapping[str, Any]) -> str:
    prompt = payload.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Malformed("`prompt` must be a text that is not empty (or give `messages` instead)", field="prompt")
    return prompt


def _messages(kind: WorkKind, payload: Mapping[str, Any]) -> list[Any]:
    if "prompt" in payload:
        wanted = "one of `prompt` and `messages`" if kind == "inference" else "`messages`, not `prompt`"
        raise Malformed(f"work of type {kind} takes {wanted}", field="prompt")
    messages = payload.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise Malformed(f"`messages` must be a list of 1 to {MOST_MESSAGES} messages", field="messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Malformed(f"`messages[{place}].role` must be one of {', '.join(ROLES)}", field="messages")
        if not isinstance(message.get("content", ""), (str, list, type(None))):
            raise Malformed(f"`messages[{place}].content` must be a text or a list of parts", field="messages")
    return messages


def _limits(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers whose wrong values engines answer badly or not at all."""
    if payload.get("n", 1) != 1:
        raise Malformed("`n` must be 1: an item has one answer", field="n")
    for name, (least, most) in _NUMBERS.items():
        value = payload.get(name)
        if value is not None and (not _is_number(value) or not least <= value <= most):
            raise Malformed(f"`{name}` must be a number from {least:g} to {most:g}", field=name)
    name = "max_completion_tokens" if "max_completion_tokens" in payload else "max_tokens"
    tokens = payload.get(name)
    tokens = DEFAULT_MAX_TOKENS if tokens is None else tokens
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= LARGEST_MAX_TOKENS:
        raise Malformed(f"`{name}` must be a whole number from 1 to {LARGEST_MAX_TOKENS}", field=name)
    return {"max_tokens": tokens}


def _flag(payload: Mapping[str, Any], name: str) -> bool:
    value = payload.get(name, False)
    if not isinstance(value, bool):
        raise Malformed(f"`{name}` must be true or false", field=name)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_answer(found: object) -> Answer:
    """An answer that came in one piece. Raises `Malformed` when it is not what an engine answers."""
    answer = _object(found)
    if isinstance(answer.get("data"), list):
        vectors = [_object(each).get("embedding") for each in answer["data"]]
        return Answer(model=_text_or_none(answer.get("model")), usage=usage_in(answer), embeddings=vectors)  # type: ignore[arg-type]
    choice = _first_choice(answer)
    if choice is None:
        raise Malformed("the engine's answer holds no choice")
    return Answer(
        text=_text_of(choice, "message"),
        model=_text_or_none(answer.get("model")),
        usage=usage_in(answer),
        finish_reason=_text_or_none(choice.get("finish_reason")),
        timings=_mapping_or_none(answer.get("timings")),
    )


def models_in(found: object) -> tuple[str, ...]:
    """The names of the models that an engine lists, at least one. Raises `Malformed`."""
    listed = _object(found).get("data")
    names = [each.get("id") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    models = tuple(name for name in names if isinstance(name, str) and name)
    if not models:
        raise Malformed("the engine lists no model")
    return models


@dataclass(slots=True)
class StreamedAnswer:
    """Gathers an answer from the events of a stream."""

    text: list[str] = field(default_factory=list)
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    timings: Mapping[str, Any] | None = None
    ended: bool = False

    def take(self, event: str) -> str:
        """The text that this event adds, often none. Raises `Malformed`, also for an error told within the stream."""
        if event.strip() == "[DONE]":
            self.ended = True
            return ""
        try:
            chunk = _object(json.loads(event))
        except (ValueError, RecursionError):
            raise Malformed("the engine sent an event that is not JSON") from None
        if chunk.get("error"):
            raise Malformed(f"the engine broke off: {error_message(chunk)}")
        return self._add(chunk)

    def _add(self, chunk: Mapping[str, Any]) -> str:
        self.model = _text_or_none(chunk.get("model")) or self.model
        self.usage = usage_in(chunk) or self.usage
        self.timings = _mapping_or_none(chunk.get("timings")) or self.timings
        choice = _first_choice(chunk)
        if choice is None:
            return ""
        self.finish_reason = _text_or_none(choice.get("finish_reason")) or self.finish_reason
        piece = _text_of(choice, "delta")
        if piece:
            self.text.append(piece)
        return piece

    def answer(self) -> Answer:
        """Raises `Malformed` when the stream broke off before its end."""
        if not self.ended and self.finish_reason is None:
            raise Malformed("the engine's stream broke off before its end")
        return Answer(
            text="".join(self.text),
            model=self.model,
            usage=self.usage,
            finish_reason=self.finish_reason,
            timings=self.timings,
        )


def usage_in(answer: Mapping[str, Any]) -> Usage | None:
    """What the engine counted; None when it does not say."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")), completion_tokens=_count(usage.get("completion_tokens"))
    )


def error_message(found: object) -> str:
    """What an engine says of a refusal, in whichever of the usual forms."""
    error = found.get("error", found) if isinstance(found, dict) else found
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:1000]


def _first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = answer.get("choices")
    return _object(choices[0]) if isinstance(choices, list) and choices else None


def _text_of(choice: Mapping[str, Any], inner: str) -> str:
    holder = choice.get(inner)
    text = holder.get("content") if isinstance(holder, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def _object(found: object) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise Malformed("the engine's answer is not a JSON object")
    return found


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping_or_none(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
