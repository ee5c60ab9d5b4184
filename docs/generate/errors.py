"""`docs/reference/errors.md`: every error a caller may be answered with."""

from collections.abc import Iterator

from docs.generate.markdown import code, page, sentence, table
from docs.generate.running import import_everything
from libs.common.errors import MeshError

INTRODUCTION = """\
The same error reads the same over NATS and over HTTP. Over NATS a request is answered with
`{"error": {"code", "message", "details"}}`; over HTTP with an RFC 9457 problem document that carries the same `code`.
`code` never changes its meaning; `message` is for people and may change; `details` depends on the code.

*Again* says whether the very same request may succeed later."""

NEVER_ANSWERED = frozenset({"wrong_setting", "service_failed"})  # they end the process


def errors() -> str:
    import_everything()
    kinds = {kind.code: kind for kind in sorted(_kinds(MeshError), key=_place)}
    rows = [_row(kinds[name]) for name in sorted(kinds) if name not in NEVER_ANSWERED]
    return page("Errors", INTRODUCTION, table(["code", "HTTP status", "again", "meaning"], rows))


def _kinds(kind: type[MeshError]) -> Iterator[type[MeshError]]:
    for narrower in kind.__subclasses__():
        yield narrower
        yield from _kinds(narrower)


def _place(kind: type[MeshError]) -> tuple[bool, str]:
    """The common errors last, so that they speak for a code that a service's own class shares."""
    return kind.__module__ == MeshError.__module__, kind.__qualname__


def _row(kind: type[MeshError]) -> list[str]:
    return [code(kind.code), str(kind.status), "yes" if kind.retryable else "no", sentence(kind.__doc__)]
