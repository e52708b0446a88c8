"""Connects hosts of ``network.py`` to their switch by a line of a given delay, for kernels without tc's netem.

Runs as one process per host: ``delay_line.py HOST SWITCH PORT SECONDS``. It creates the device ``eth0`` in the network
namespace HOST and PORT in SWITCH, prints a line, and carries Ethernet frames until it is killed; the devices end with
it. What the host sends arrives SECONDS later; what it receives is not delayed again.

The devices exchange segments of up to 64 KiB with their headers, as a network card with segmentation offload does, so
that a few thousand frames a second carry 1 Gbit/s.
"""

import collections
import fcntl
import os
import select
import struct
import sys
import threading
import time

from network import inside

# From linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_CHECKSUMS, _SEGMENTS_OF_TCP4 = 0x01, 0x02
_LARGEST_FRAME = 10 + 14 + (1 << 16)  # the header of virtio, that of Ethernet, and the segment


def _device(namespace, name):
    with inside(namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CHECKSUMS | _SEGMENTS_OF_TCP4)
    return descriptor


def _carry(source, target, delay):
    """Write each frame of a device to another one, ``delay`` seconds after it was read."""
    waiting = collections.deque()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([source], [], [], timeout)
        if readable:
            waiting.append((time.monotonic() + delay, os.read(source, _LARGEST_FRAME)))
        while waiting and waiting[0][0] <= time.monotonic():
            try:
                os.write(target, waiting.popleft()[1])
            except OSError as error:  # a device that is still down drops the frame, as a cable would
                print(f"a frame is lost: {error}", file=sys.stderr)


def main(host, switch, port, delay):
    outside, within = _device(switch, port), _device(host, "eth0")
    print("ready", flush=True)
    threading.Thread(target=_carry, args=(outside, within, 0.0), daemon=True).start()
    _carry(within, outside, delay)


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]))
