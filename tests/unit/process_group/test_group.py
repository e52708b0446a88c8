"""Process groups whose members are threads: what they compute, and how they end."""

import os
import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest

from process_groups import make_members, run_threads
from spark_tensorflow_distributor import RendezvousError, RendezvousTimeoutError
from spark_tensorflow_distributor.errors import CollectiveError
from spark_tensorflow_distributor.process_group.connection import PeerLostError
from spark_tensorflow_distributor.process_group.group import ProcessGroup
from spark_tensorflow_distributor.process_group.out_of_step import OutOfStepError

MACHINES = ["a", "aa", "ab", "aaa", "aab", "abac", "abcdefghijk", "aaaabbbc"]


def arrays_of(rank, dtype, shapes):
    random = np.random.default_rng(rank)
    return [(random.random(shape) * 50).astype(dtype) for shape in shapes]


def raised(results):
    return [each for each in results if isinstance(each, Exception)]


@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "float16"])
def test_sums(machines, dtype):
    shapes = [[()], [(3, 5), (0,), (7,)], [(0,)], [(2, 3), (150_001,), (3,)]]

    def work(group):
        return [group.all_reduce(arrays_of(group.rank, dtype, each), 0.5 if "f" in dtype else None) for each in shapes]

    results = run_threads(machines, work, 60)
    assert raised(results) == []
    for number, each in enumerate(shapes):
        terms = [arrays_of(rank, dtype, each) for rank in range(len(machines))]
        for index in range(len(each)):
            expected = sum(term[index].astype("float64") for term in terms) * (0.5 if "f" in dtype else 1)
            found = [result[number][index] for result in results]
            assert {array.dtype.name for array in found} == {dtype}
            assert {array.tobytes() for array in found} == {found[0].tobytes()}  # equal bits on all members
            np.testing.assert_allclose(found[0].astype("float64"), expected, rtol=1e-3 if dtype == "float16" else 1e-5)


@pytest.mark.parametrize("machines", MACHINES)
def test_more_than_a_block(machines):
    """Blocks, segments and frames of the transfers have boundaries that must not matter."""
    size = 2_100_003

    def work(group):
        (total,) = group.all_reduce([np.arange(size, dtype=np.float32) % 1000 + group.rank])
        return total

    results = run_threads(machines, work, 60)
    assert raised(results) == []
    workers = len(machines)
    expected = np.arange(size, dtype=np.float32) % 1000 * workers + workers * (workers - 1) / 2
    assert all((each == expected).all() for each in results)


@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize(
    ("dtype", "shape"), [("bool", (3,)), ("float32", ()), ("int64", (0, 4)), ("uint8", (1_500_001,))]
)
def test_gathers(machines, dtype, shape):
    results = run_threads(machines, lambda group: group.all_gather(arrays_of(group.rank, dtype, [shape])[0]), 60)
    assert raised(results) == []
    expected = np.stack([arrays_of(rank, dtype, [shape])[0] for rank in range(len(machines))])
    assert all(each.dtype == expected.dtype and np.array_equal(each, expected) for each in results)


def test_two_bytes_are_summed_in_four():
    """In float16, 2048 + 1 is 2048."""
    results = run_threads("abc", lambda group: group.all_reduce([np.float16([2048, 1, 1])[group.rank :][:1]])[0], 30)
    assert [float(each[0]) for each in results] == [2050.0] * 3


@pytest.mark.parametrize("machines", ["ab", "abc", "aabbc", "aaa"])
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_compressed_sums(machines, wire):
    """Sums are rounded once per machine on the way, and have equal bits on all members."""
    ml_dtypes = pytest.importorskip("ml_dtypes")  # which TensorFlow needs
    dtype = np.dtype(getattr(ml_dtypes, wire, wire))
    shapes = [(300_000,), (7, 11), (3,)]
    terms = [arrays_of(rank, "float32", shapes) for rank in range(len(machines))]
    results = run_threads(machines, lambda group: group.all_reduce(terms[group.rank], 0.5, "", dtype), 60)
    assert raised(results) == []
    for index in range(len(shapes)):
        exact = sum(term[index].astype("float64") for term in terms) * 0.5
        assert len({result[index].tobytes() for result in results}) == 1
        step = 0.0 if len(set(machines)) == 1 else float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(results[0][index], exact, rtol=1e-6 + step * len(set(machines)))
        if step and index == 0:
            assert (results[0][index].astype(dtype).astype("float32") == results[0][index]).all()


def test_gradients_on_the_wire_take_half_the_bytes():
    received = []

    def work(group, wire):
        group.all_reduce([np.ones(100_000, np.float32)], None, "", wire)
        (connection,) = group._connections()
        info = connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        received.append(struct.unpack_from("Q", info, 128)[0])  # tcpi_bytes_received

    for wire in (None, np.dtype("float16")):
        assert raised(run_threads("ab", lambda group, wire=wire: work(group, wire), 30)) == []
    assert sum(received[2:]) < 0.55 * sum(received[:2])


@pytest.mark.parametrize("machines", MACHINES[1:])
def test_nobody_passes_a_barrier_before_all_have_come(machines):
    come = []

    def work(group):
        time.sleep(0.05 * group.rank)
        come.append(group.rank)
        group.barrier()
        return len(come)

    assert run_threads(machines, work, 30) == [len(machines)] * len(machines)


def test_an_observer_sees_how_long_an_operation_took():
    def work(group):
        seen = []
        group.observer = lambda seconds, nbytes: seen.append((seconds, nbytes))
        time.sleep(0.3 * group.rank)
        group.all_reduce([np.ones(10, "f4")])
        group.barrier()
        return seen

    first, last = run_threads("ab", work, 30)
    assert [nbytes for _, nbytes in first] == [40, 0]
    assert first[0][0] >= 0.2  # it waits for the other one
    assert len(last) == 2


def test_results_are_aligned_for_tensorflow():
    for machines in ("ab", "aa"):
        results = run_threads(machines, lambda group: group.all_reduce([np.ones(3, "f4"), np.ones(70, "f4")]), 30)
        assert all(array.ctypes.data % 64 == 0 for each in results for array in each)


@pytest.mark.parametrize("machines", MACHINES[1:])
@pytest.mark.parametrize("nbytes", [4, 3 << 20])
def test_a_member_that_dies_ends_the_operation_of_all(machines, nbytes):
    victim = len(machines) - 1

    def work(group):
        group.barrier()
        if group.rank == victim:
            group.close()
            return 0.0
        began = time.monotonic()
        with pytest.raises(PeerLostError, match=f"connection to rank {victim} was lost"):
            group.all_reduce([np.ones(nbytes // 4, np.float32)])
        with pytest.raises(PeerLostError):  # the group is unusable from now on
            group.barrier()
        return time.monotonic() - began

    results = run_threads(machines, work, 30)
    assert raised(results) == []
    assert max(results) < 5


@pytest.mark.parametrize("machines", MACHINES[1:])
def test_a_member_that_fails_says_why(machines):
    def work(group):
        if group.rank == 0:
            group.leave({"kind": "failed", "text": "ValueError: no such column"})
            return
        with pytest.raises(PeerLostError, match="Rank 0 failed: ValueError: no such column"):
            group.all_reduce([np.ones(5, np.float32)])

    assert raised(run_threads(machines, work, 30)) == []


@pytest.mark.parametrize("machines", MACHINES[1:])
def test_a_member_that_has_returned_is_named(machines):
    def work(group):
        if group.rank == len(machines) - 1:
            group.leave()
            return
        with pytest.raises(OutOfStepError, match=f"Rank {len(machines) - 1} has returned from the training function"):
            group.barrier()

    assert raised(run_threads(machines, work, 30)) == []


@pytest.mark.parametrize("machines", MACHINES[1:])
@pytest.mark.parametrize("nbytes", [4, 3 << 20])
def test_different_operations_are_an_error_with_both_places(machines, nbytes):
    def work(group):
        array = np.ones(nbytes // 4 + (group.rank == 1), np.float32)
        with pytest.raises(OutOfStepError) as info:
            group.all_reduce([array])
        return str(info.value)

    results = run_threads(machines, work, 30)
    assert raised(results) == []
    text = f"rank 1 is in line 1 [all_reduce of {nbytes + 4} bytes of float32]"
    assert all(text in each and "is in line" in each.replace(text, "") for each in results)


def test_a_farewell_waits_for_the_operation_that_precedes_it():
    """A member that leaves after its last operation does not disturb slower members in that operation."""

    def work(group):
        if group.rank == 0:
            time.sleep(0.1)
        (total,) = group.all_reduce([np.ones(1 << 20, np.float32)])
        group.leave()
        return float(total[0])

    for machines in ("ab", "aa", "abc", "aabb"):
        assert run_threads(machines, work, 30) == [len(machines)] * len(machines)


@pytest.mark.parametrize("odd", [0, 4, 8, 9])
@pytest.mark.parametrize("sizes", [(4, 4 << 20), (4 << 20, 4)])
def test_members_that_are_not_neighbours_disagree(odd, sizes):
    """Ten leaders are not all connected, and small sums have other neighbours than large ones."""

    def work(group):
        with pytest.raises(OutOfStepError):
            group.all_reduce([np.ones(sizes[group.rank == odd] // 4, np.float32)])

    assert raised(run_threads("abcdefghij", work, 30)) == []


def sums_of(*sizes, dtype="float32"):
    return lambda group: group.all_reduce([np.ones(size, dtype) for size in sizes])


def gathers_of(dtype, purpose=""):
    return lambda group: group.all_gather(np.ones(4, dtype), purpose)


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (sums_of(16, 17), sums_of(33)),
        (sums_of(4, dtype="float16"), sums_of(4)),
        (gathers_of("float32", "fit"), gathers_of("float32", "evaluate")),
        (gathers_of("float32"), gathers_of("int32")),
    ],
)
@pytest.mark.parametrize("machines", ["ab", "aa"])
def test_operations_of_the_same_size_are_told_apart(machines, mine, other):
    def work(group):
        with pytest.raises(OutOfStepError):
            (other if group.rank else mine)(group)

    assert raised(run_threads(machines, work, 30)) == []


@pytest.mark.parametrize("machines", ["ab", "aa"])
def test_an_interrupted_operation_ends_the_group(machines):
    def work(group):
        if group.rank == 0:
            with pytest.raises(KeyboardInterrupt), group._operation("all_reduce", "float32", 4):
                raise KeyboardInterrupt("Ctrl-C")
            assert group.was_interrupted
            with pytest.raises(CollectiveError, match="interrupted: KeyboardInterrupt"):
                group.barrier()
        else:
            with pytest.raises(PeerLostError, match="Rank 0 failed: KeyboardInterrupt: Ctrl-C"):
                group.all_reduce([np.ones(1, np.float32)])

    assert raised(run_threads(machines, work, 30)) == []


def test_a_long_reason_is_shortened():
    def work(group):
        if group.rank == 0:
            group.leave({"kind": "failed", "text": "\N{PILE OF POO}" * 100_000})
        else:
            with pytest.raises(PeerLostError, match=r"Rank 0 failed: \U0001F4A9{2000}$"):
                group.barrier()

    assert raised(run_threads("ab", work, 30)) == []


def test_a_member_leaves_while_another_thread_waits(monkeypatch):
    monkeypatch.setattr("spark_tensorflow_distributor.process_group.group._LEAVE_SECONDS", 0.5)

    def wait(group):
        with pytest.raises(CollectiveError):
            group.barrier()

    def work(group):
        if group.rank == 0:
            waiting = threading.Thread(target=wait, args=[group])
            waiting.start()
            time.sleep(0.2)
            group.leave({"kind": "failed", "text": "ValueError"})
            waiting.join(10)
            assert not waiting.is_alive()
        else:
            time.sleep(1)
            group.barrier()  # which the other thread has reached
            with pytest.raises(PeerLostError):
                group.barrier()

    assert raised(run_threads("ab", work, 30)) == []


def test_a_forked_process_neither_takes_part_nor_keeps_connections_open():
    def work(group):
        if group.rank == 0:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    group.barrier()
                except CollectiveError as error:
                    os.write(writer, str(error).encode())
                time.sleep(30)
            os.close(writer)
            text = os.read(reader, 1000).decode()
            os.close(reader)
            group.close()
            children.append(pid)
            return text
        began = time.monotonic()
        with pytest.raises(PeerLostError):
            group.barrier()
        assert time.monotonic() - began < 10
        return ""

    children = []
    results = run_threads("ab", work, 30)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert raised(results) == []
    assert "not possible in a forked process" in results[0]


def test_what_cannot_be_summed():
    def work(group):
        with pytest.raises(TypeError, match="int32 cannot be multiplied"):
            group.all_reduce([np.ones(3, np.int32)], 0.5)
        with pytest.raises(TypeError, match="complex64"):
            group.all_reduce([np.ones(3, np.complex64)])
        with pytest.raises(TypeError, match="float32', 'float64"):
            group.all_reduce([np.ones(3, np.float32), np.ones(3, np.float64)])
        return group.all_reduce([np.ones(3, np.int32)])[0].tolist()  # the group still works

    assert run_threads("ab", work, 30) == [[2, 2, 2]] * 2


def test_an_overflow_is_not_a_warning():
    def work(group):
        return float(group.all_reduce([np.float16([60000])])[0][0])

    assert run_threads("ab", work, 30) == [np.inf] * 2


def rubbish_to(listener, stop):
    """Connect to a listener in every wrong way until told to stop; return how many times."""
    held, count = [], 0
    while not stop.is_set():
        try:
            sock = socket.socket(listener.family)
            held.append(sock)
            sock.settimeout(1)
            sock.connect(listener.getsockname())
            if count % 4 == 1:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
            elif count % 4 == 2:
                sock.sendall(bytes(68))
            elif count % 4 == 3:
                sock.close()
            count += 1
        except OSError:
            time.sleep(0.001)
        if len(held) > 100:
            held.pop(0).close()
    for sock in held:
        sock.close()
    return count


@pytest.mark.parametrize("machines", ["ab", "aa"])
def test_strangers_do_not_keep_a_group_from_forming(machines):
    specs, listeners = make_members(machines)
    stop, results = threading.Event(), {}
    stranger = threading.Thread(target=rubbish_to, args=(listeners[0][machines == "aa"], stop), daemon=True)

    def run(rank):
        group = ProcessGroup.form(specs[rank], *listeners[rank], 20)
        results[rank] = group.all_reduce([np.ones(3, np.float32)])[0].tolist()
        group.barrier()
        group.close()

    stranger.start()
    members = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in (0, 1)]
    members[0].start()
    time.sleep(0.3)  # it meets strangers only
    members[1].start()
    for each in members:
        each.join(20)
    stop.set()
    stranger.join(10)
    assert results == {0: [2.0] * 3, 1: [2.0] * 3}


def test_nobody_can_connect_to_a_group_that_has_been_formed():
    specs, listeners = make_members("ab")
    addresses = [each.getsockname() for each, _ in listeners]

    def run(rank):
        groups.append(ProcessGroup.form(specs[rank], *listeners[rank], 20))

    groups = []
    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=1)
    for group in groups:
        group.close()


def test_a_missing_member_is_named():
    specs, listeners = make_members("ab")
    with pytest.raises(
        RendezvousTimeoutError, match=r"Rank 0 could not connect to rank 1 \(127.0.0.1:\d+\) within 1 s"
    ):
        ProcessGroup.form(specs[0], *listeners[0], 1)
    listeners[1][1].close()
    with pytest.raises(RendezvousTimeoutError, match="Rank 1 could not connect to rank 0"):
        ProcessGroup.form(specs[1], listeners[1][0], None, 1)


def test_an_acceptor_without_the_secret_is_rejected():
    specs, listeners = make_members("ab")

    def pretend():
        connection, _ = listeners[0][0].accept()
        with connection:
            connection.sendall(bytes(32))
            connection.recv(100)
            connection.sendall(bytes(32))

    thread = threading.Thread(target=pretend, daemon=True)
    thread.start()
    with pytest.raises(RendezvousError, match="does not hold this group's secret"):
        ProcessGroup.form(specs[1], *listeners[1], 5)
    thread.join(5)
    for each in listeners[0]:
        each.close()


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"x" * 24, b"x" * 90_000, b"STDd" + b"\xff" * 20, b"STDf" + bytes(16) + struct.pack(">I", 5) + b"notjs"],
)
def test_rubbish_from_a_member_ends_the_group(rubbish):
    def work(group):
        group.barrier()
        if group.rank == 1:
            (connection,) = group._connections()
            connection.socket.setblocking(True)
            connection.socket.sendall(rubbish)
            connection.close()
            return
        with pytest.raises(PeerLostError, match="connection to rank 1 was lost"):
            group.all_reduce([np.ones(50_000, np.float32)])

    for machines in ("ab", "aa"):
        assert raised(run_threads(machines, work, 30)) == []
