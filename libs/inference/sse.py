"""Server-sent events, read as they arrive. Pure: bytes in, the data of whole events out."""

from libs.common.errors import Malformed

LONGEST_EVENT_BYTES = 4 * 1024 * 1024


class EventReader:
    """Takes the stream in pieces cut anywhere, also within a character or a line end."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[str]:
        """The data of every event that is complete now. Raises `Malformed` for an event that never ends."""
        events: list[str] = []
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = b""
        for place, line in enumerate(lines):
            is_last = place == len(lines) - 1
            if is_last and not line.endswith(b"\n"):
                # Also a lone CR at the end: the LF that belongs to it may come next.
                self._rest = line
            elif (data := self._take(line.rstrip(b"\r\n"))) is not None:
                events.append(data)
        if len(self._rest) + self._held > LONGEST_EVENT_BYTES:
            raise Malformed(f"the engine sent an event of more than {LONGEST_EVENT_BYTES} bytes")
        return events

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data, self._held = self._data, [], 0
            return b"\n".join(data).decode(errors="replace") if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._held += len(value)
        return None
