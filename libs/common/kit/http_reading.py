"""How requests are read from a connection: by httptools, in C, within a limit of our own."""

from typing import Any

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_UNFINISHED_BYTES = 16 * 1024


class Reading(HttpToolsProtocol):
    """httptools waits for the end of a line or a head however long it becomes, and it takes the fields behind a body in
    chunks for headers of the request. Here who sends `MOST_UNFINISHED_BYTES` without completing a head or a piece of
    a body is told so, and fields behind a body are passed over.

    A request that offers another protocol ends for httptools with its head, even where it has a body. Nothing but HTTP
    is spoken here: such a head is read once more, without the offer.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unfinished = 0
        self._in_head = False
        self._offers = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        try:
            self._feed(memoryview(data))
        except HttpParserError:
            self._refuse("Invalid HTTP request received.")
            return
        if self._unfinished > MOST_UNFINISHED_BYTES:
            self._refuse("The request line, the headers or what is around a piece of the body is too long.")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unfinished = 0
        self._offers = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        if not self._offers:
            super().on_message_complete()

    def _feed(self, data: memoryview) -> None:
        """Raises `HttpParserError`."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:  # it stopped there, since what follows need not be HTTP
                data = data[upgrade.args[0] :]
                if self._offers:
                    self.parser.feed_data(self._head_without_offer())

    def _head_without_offer(self) -> bytes:
        first = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = (b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade")
        return b"\r\n".join((first, *fields, b"", b""))

    def _refuse(self, reason: str) -> None:
        if not self.transport.is_closing():
            self.logger.warning(reason)
            self.send_400_response(reason)
