"""How a writer's epoch record is told from what a stranger put on its subject."""

from libs.common.bus.bus import Bus
from libs.common.bus.transport import MESSAGE_ID_HEADER, Stored
from libs.common.contracts.base import Topic
from libs.common.contracts.log import LogEpoch
from libs.common.errors import Malformed


def epoch_id(epoch: LogEpoch) -> str:
    """The message id of an epoch record."""
    return f"epoch-{epoch.epoch}-{epoch.holder}"


def told_epoch(bus: Bus, epochs: Topic[LogEpoch], stored: Stored) -> LogEpoch | None:
    """None when no writer wrote this."""
    try:
        told = bus.decode(epochs, stored)
    except Malformed:
        return None
    return told if stored.headers.get(MESSAGE_ID_HEADER) == epoch_id(told) else None
