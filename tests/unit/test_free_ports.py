"""Where servers of tests listen."""

import subprocess
import sys

from tools import free_ports as module


def test_ports_lie_where_no_outgoing_connection_takes_them() -> None:
    ports = module.free_ports(50)
    assert len(set(ports)) == 50
    assert all(module.LOWEST <= port < module._end() for port in ports)


def test_two_processes_are_never_given_the_same_port() -> None:
    ours = set(module.free_ports(100))
    other = "from tools.free_ports import free_ports; print(*free_ports(100))"
    theirs = {int(port) for port in subprocess.check_output([sys.executable, "-c", other], text=True).split()}
    assert len(theirs) == 100
    assert not ours & theirs
