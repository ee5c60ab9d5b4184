"""Where engines listen on this machine, and by which of its addresses others reach them."""

from ipaddress import ip_address

import structlog

from libs.common.errors import WrongSetting
from libs.hardware.host import read_network
from services.node_agent.hosted_door import EngineAddress

log = structlog.get_logger()


def address_of(host: str, told: str | None, api_key: str) -> EngineAddress:
    """Raises `WrongSetting` where engines would listen for others and nobody could be told where."""
    if told is None and ip_address(host).is_unspecified:
        known = [each.address for each in read_network() if ":" not in each.address or ":" in host]
        if not known:
            raise WrongSetting(f"ENGINE_HOST is {host}, and this machine has no address to tell; set ENGINE_ADDRESS.")
        told = known[0]
    if not api_key and not ip_address(host).is_loopback:
        log.warning("engines_without_key", host=host, advice="whoever reaches them may ask them; set ENGINE_API_KEY")
    return EngineAddress(host=host, told=told or host, api_key=api_key)
