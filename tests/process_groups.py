"""Process groups for tests: each member is a thread of this process, or a separate process."""

import contextlib
import multiprocessing
import secrets
import socket
import threading
import traceback

from spark_tensorflow_distributor.process_group.group import ProcessGroup
from spark_tensorflow_distributor.process_group.spec import GroupSpec, Member


def make_members(machines):
    """Return the specs of a group and each member's listeners; ``machines`` names the machine of each rank."""
    members, listeners = [], []
    for machine in machines:
        remote = socket.create_server(("127.0.0.1", 0))
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.bind("")
        local.listen()
        listeners.append((remote, local))
        members.append(Member("127.0.0.1", remote.getsockname()[1], machine, local.getsockname().hex()))
    secret = secrets.token_hex(32)
    return [GroupSpec(rank, tuple(members), secret) for rank in range(len(machines))], listeners


def run_threads(machines, work, seconds=30):
    """Call ``work(group)`` on each member, in threads; return the results or the exceptions raised."""
    specs, listeners = make_members(machines)
    results = [None] * len(machines)

    def run(rank):
        try:
            group = ProcessGroup.form(specs[rank], *listeners[rank], seconds, lambda: f"line {rank}")
            with contextlib.closing(group):
                try:
                    results[rank] = work(group)
                finally:
                    barrier.wait(seconds)
        except Exception as error:
            results[rank] = error

    barrier = threading.Barrier(len(machines))
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a member hangs"
    return results


def run_processes(machines, work, seconds=120):
    """Call ``work(group)`` on each member, in forked processes; return the results."""
    specs, listeners = make_members(machines)
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()

    def run(rank):
        try:
            for other, pair in enumerate(listeners):
                if other != rank:
                    for each in pair:
                        each.close()
            group = ProcessGroup.form(specs[rank], *listeners[rank], seconds)
            queue.put((rank, work(group)))
            group.barrier()
            group.close()
        except BaseException as error:
            traceback.print_exc()
            queue.put((rank, error))

    processes = [fork.Process(target=run, args=(rank,)) for rank in range(len(machines))]
    for process in processes:
        process.start()
    for pair in listeners:
        for each in pair:
            each.close()
    results = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [results[rank] for rank in range(len(machines))]
