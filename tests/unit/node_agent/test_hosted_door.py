"""How engines are reached, from their machine and from others."""

import pytest

from services.node_agent.hosted_door import EngineAddress
from services.node_agent.hosted_network import address_of


@pytest.mark.parametrize(
    ("host", "told", "near", "far"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("0.0.0.0", "gpu-1.example", "http://127.0.0.1:9", "http://gpu-1.example:9"),
        ("192.0.2.7", "192.0.2.7", "http://192.0.2.7:9", "http://192.0.2.7:9"),
        ("::", "fd00::7", "http://[::1]:9", "http://[fd00::7]:9"),
    ],
)
def test_from_its_own_machine_an_engine_is_reached_however_it_listens(host: str, told: str, near: str, far: str):
    address = EngineAddress(host=host, told=told)

    assert (address.near(9), address.far(9)) == (near, far)


def test_without_a_key_nobody_is_asked_for_one():
    assert (EngineAddress().headers, EngineAddress().environment) == ({}, {})


def test_others_are_told_the_address_that_engines_listen_on_or_the_one_that_is_set():
    assert address_of("192.0.2.7", None, "").told == "192.0.2.7"
    assert address_of("0.0.0.0", "gpu-1.example", "").told == "gpu-1.example"


def test_where_engines_listen_on_every_address_others_are_told_one_that_they_may_reach():
    assert not address_of("0.0.0.0", None, "").told.startswith(("127.", "0."))
