"""Submits an item over REST, follows it to its end, and runs it once more if every attempt failed.

Run it with: python follow_and_replay.py '{"work_type": "chat", "payload": {"prompt": "Hello"}}'        (needs httpx)
"""

import json
import os
import sys
from typing import Any

import httpx

WORK_URL = os.environ.get("WORK_MARSHALING_URL", "http://127.0.0.1:8118") + "/api/v1/work"


def follow(http: httpx.Client, work_id: str) -> dict[str, Any]:
    """Shows what happens to the item, and returns it as it ended."""
    told: dict[str, Any] = {}
    with http.stream("GET", f"{WORK_URL}/{work_id}/events") as events:
        for line in events.raise_for_status().iter_lines():
            if line.startswith("data: "):  # a state, or progress with partial output
                told = json.loads(line.removeprefix("data: "))
                print(work_id, told.get("status") or told.get("text"), flush=True)
    return told


def main(item: dict[str, Any]) -> None:
    with httpx.Client(timeout=60) as http:
        accepted = http.post(f"{WORK_URL}/submit", json=item).raise_for_status().json()
        ended = follow(http, accepted["work_id"])
        if ended["status"] == "dead":
            again = http.post(f"{WORK_URL}/dead/{ended['work_id']}/replay").raise_for_status().json()
            ended = follow(http, again["work_id"])
        print(ended["result"] if ended["status"] == "completed" else ended["error"]["message"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
