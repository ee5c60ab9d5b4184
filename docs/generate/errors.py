"""`docs/reference/errors.md`: every error a caller may be answered with."""

from collections.abc import Iterator

from docs.generate.markdown import code, page, sentence, table
from docs.generate.running import import_everything
from libs.common.errors import MeshError, WrongSetting

INTRODUCTION = """\
The same error reads the same over NATS and over HTTP. Over NATS a request is answered with
`{"error": {"code", "message", "details"}}`; over HTTP with an RFC 9457 problem document that carries the same `code`.
`code` never changes its meaning; `message` is for people and may change; `details` depends on the code.

*Again* says whether the very same request may succeed later."""


def errors() -> str:
    import_everything()
    kinds = {kind.code: kind for kind in sorted(_kinds(MeshError), key=_place) if kind is not WrongSetting}
    rows = [[code(name), str(kinds[name].status), _again(kinds[name]), _meaning(kinds[name])] for name in sorted(kinds)]
    return page("Errors", INTRODUCTION, table(["code", "HTTP status", "again", "meaning"], rows))


def _kinds(kind: type[MeshError]) -> Iterator[type[MeshError]]:
    for narrower in kind.__subclasses__():
        yield narrower
        yield from _kinds(narrower)


def _place(kind: type[MeshError]) -> tuple[bool, str]:
    """The common errors last, so that they speak for a code that a service's own class shares."""
    return kind.__module__ == MeshError.__module__, kind.__qualname__


def _again(kind: type[MeshError]) -> str:
    return "yes" if kind.retryable else "no"


def _meaning(kind: type[MeshError]) -> str:
    return sentence(kind.__doc__)
