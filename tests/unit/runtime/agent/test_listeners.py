import contextlib
import socket
import sys

import pytest

from spark_tensorflow_distributor import ClusterError
from spark_tensorflow_distributor.runtime.agent.listeners import hold_port, machine, open_listeners

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract socket names exist on Linux only")


def test_a_held_port_is_reserved():
    with hold_port() as holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", holder.getsockname()[1]))


def test_a_port_from_a_range():
    with hold_port() as any_port:
        free = any_port.getsockname()[1]
    for host in (None, "127.0.0.1"):
        with hold_port(range(free, free + 1), host) as held:
            assert held.getsockname()[1] == free
            with pytest.raises(ClusterError, match="workerPorts"):
                hold_port(range(free, free + 1), host)


def test_a_port_can_be_used_again_at_once():
    """A connection that was accepted stays in TIME_WAIT for a minute."""
    with hold_port(host="127.0.0.1", listens=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as other:
            accepted, _ = listener.accept()
            accepted.close()
            assert other.recv(1) == b""
    with hold_port(range(port, port + 1), "127.0.0.1", listens=True) as again:
        assert again.getsockname()[1] == port
        with pytest.raises(ClusterError, match="workerPorts"):
            hold_port(range(port, port + 1), "127.0.0.1", listens=True)


def test_a_name_that_means_the_loopback_interface_is_not_bound():
    """``/etc/hosts`` often has the host's own name as 127.0.1.1."""
    with hold_port(host="localhost") as held:
        assert held.getsockname()[0] in ("::", "0.0.0.0")


@pytest.mark.parametrize(
    ("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("192.0.2.77", "::"), ("no such host.invalid", "::"), (None, "::")]
)
def test_only_the_interface_of_the_group_is_bound(host, bound):
    """An address that is not this machine's, of a NAT for example, cannot be bound."""
    with hold_port(host=host) as held:
        assert held.getsockname()[0] in (bound, "0.0.0.0" if bound == "::" else bound)


@linux_only
def test_connections_wait_until_they_are_accepted():
    with contextlib.closing(open_listeners("127.0.0.1", None, listens=True)) as listeners:
        member = listeners.member
        assert member.machine == machine() != ""
        with socket.create_connection((member.host, member.port)), socket.socket(socket.AF_UNIX) as local:
            local.connect(bytes.fromhex(member.local_name))


def test_a_port_that_is_reserved_for_tensorflow_refuses_connections():
    with contextlib.closing(open_listeners("127.0.0.1", None, listens=False)) as listeners:
        assert listeners.member.machine == ""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((listeners.host, listeners.port))
