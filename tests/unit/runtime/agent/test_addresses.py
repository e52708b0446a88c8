"""The address at which other workers reach this one."""

import pytest

from spark_tensorflow_distributor import ClusterError
from spark_tensorflow_distributor.runtime.agent.addresses import address_in, grpc_address, without_proxy


@pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1", "lo"])
def test_the_address_in_a_network(network):
    assert address_in(network, "me") == "127.0.0.1"


@pytest.mark.parametrize(
    ("network", "text"),
    [("203.0.113.0/24", "no address in 203.0.113.0/24"), ("nowhere0", "no network interface 'nowhere0'")],
)
def test_a_host_outside_of_the_network_is_named_with_its_interfaces(network, text):
    with pytest.raises(ClusterError, match=rf"The host me has {text}, .*workerNetwork requires; .*lo 127\.0\.0\.1"):
        address_in(network, "me")


def test_addresses_for_tensorflow():
    assert grpc_address("worker-1.example", 7, resolve=None) == "worker-1.example:7"
    assert grpc_address("10.0.0.1", 7, resolve=None) == "10.0.0.1:7"
    assert grpc_address("[fd00::1]", 7) == grpc_address("fd00::1", 7) == "[fd00::1]:7"
    assert grpc_address("project_worker_1", 7, resolve=lambda name: "172.18.0.3") == "172.18.0.3:7"
    assert grpc_address("project_worker_1", 7, resolve=lambda name: "fd00::3") == "[fd00::3]:7"

    def unknown(name):
        raise OSError("unknown")

    assert grpc_address("project_worker_1", 7, resolve=unknown) == "project_worker_1:7"


def test_workers_are_never_reached_through_a_proxy():
    hosts = ["10.0.0.1", "[fd00::1]", "10.0.0.1"]
    assert without_proxy({"no_proxy": "a"}, hosts) == {}
    assert without_proxy({"https_proxy": "http://p:3128"}, hosts) == {"no_grpc_proxy": "10.0.0.1,fd00::1"}
    proxies = {"grpc_proxy": "http://p:3128", "no_proxy": "intranet,10.0.0.1"}
    assert without_proxy(proxies, hosts) == {"no_grpc_proxy": "intranet,10.0.0.1,fd00::1"}
    assert without_proxy({**proxies, "no_grpc_proxy": "b"}, hosts) == {"no_grpc_proxy": "b,10.0.0.1,fd00::1"}
