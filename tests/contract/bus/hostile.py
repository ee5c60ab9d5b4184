"""What a careless or hostile sender may put on a subject."""

from libs.common.contracts.base import MAX_DEPTH

DEEP = 10_000

UNREADABLE: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n\t",
    "text": b"hello",
    "half an object": b'{"node_id": "a", "at"',
    "an object and more": b"{}{}",
    "null": b"null",
    "an array": b"[]",
    "a number": b"7",
    "a string": b'"{}"',
    "NaN": b"NaN",
    "invalid UTF-8": b"\xff\xfe\x00\x01",
    "invalid UTF-8 within a string": b'{"unknown": "\xc3\x28"}',
    "UTF-16": '{"unknown": "x"}'.encode("utf-16"),
    "half a surrogate pair": b'{"unknown": "\\ud800"}',
    "arrays ten thousand deep": b'{"unknown": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "objects ten thousand deep": b'{"unknown": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "arrays that never end": b"[" * 900_000,
    "an integer of five thousand digits": b'{"unknown": 1' + b"0" * 5000 + b"}",
    "a comment": b"{} // all is well",
    "a single quote": b"{'unknown': 1}",
    "zero bytes": b"\x00" * 1000,
}
"""Unreadable as any message of ours."""


def readable_oddities(sample: bytes) -> dict[str, bytes]:
    """A message with something beside it that is none of our business: it is read as if that were not there."""
    body = sample.strip()[1:]
    joined = b", " + body if body.strip() != b"}" else body
    keys = b",".join(b'"%x":1' % number for number in range(100_000))
    return {
        "an unknown field": b'{"unknown": {"a": [1, 2, null]}' + joined,
        "a key twice, the last one counts": b'{"unknown": 1, "unknown": 2' + joined,
        "a hundred thousand unknown keys": b"{" + keys + joined,
        "an unknown NaN": b'{"unknown": NaN' + joined,
        "a large unknown integer": b'{"unknown": 1' + b"0" * 400 + joined,
        "much white space": b" " * 100_000 + b"{" + body,
    }


HOSTILE_PAYLOADS: dict[str, bytes] = {
    "NaN": b'{"x": NaN}',
    "NaN within": b'{"x": [1, {"y": [NaN]}]}',
    "an infinity": b'{"x": [-Infinity]}',
    "a number that overflows": b'{"x": 1e999}',
    "an integer beyond 64 bits": b'{"x": [9223372036854775808]}',
    "an integer of 400 digits": b'{"x": 1' + b"0" * 400 + b"}",
    "half a surrogate pair": b'{"x": "\\udfff"}',
    "half a surrogate pair in a key": b'{"\\udfff": 1}',
    "deeper than allowed": b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH,
    "no object": b"[1]",
}
"""What the free part of a message (a work item's payload) may not hold."""
