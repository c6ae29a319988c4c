"""How packets cross to another process: UDP datagrams, or a file in shared memory."""

from __future__ import annotations

import mmap
import os
import re
import select
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from . import _slot_file
from ._slot_file import SLOT_ALIGNMENT
from .errors import LinkError
from .packets import is_intact

SHARED_MEMORY = Path("/dev/shm")
POLL_S = 50e-6
COUNTER = struct.Struct("<Q")
MAX_DATAGRAM_BYTES = 65_507  # of UDP over IPv4
USAGE = "give udp://HOST:PORT or shm:///NAME"


class Transport(Protocol):
    """One end of a link."""

    def send(self, packet: bytes) -> None:
        """Send without waiting; where there is nobody the packet is lost."""

    def receive(self, timeout_s: float) -> tuple[bytes, object] | None:
        """The next packet and who sent it, or None after `timeout_s` (0: do not wait)."""

    def answer(self, sender: object) -> None:
        """Send to this sender from now on."""

    def close(self) -> None:
        """Give back what the system lent."""


class Udp:
    """Datagrams; the policy's end listens at an address, and answers whoever sent the last observation."""

    def __init__(self, host: str, port: int, *, listens: bool, max_bytes: int) -> None:
        self._max_bytes = max_bytes + 1  # so that what is too long does not look as if it fitted
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._peer: Any = None
        try:
            if listens:
                self._socket.bind((host, port))
            else:
                self._socket.connect((host, port))
        except OSError as error:
            self._socket.close()
            raise LinkError(
                f"udp://{host}:{port}: {error.strerror}; name a free port of this machine"
            ) from None
        self._socket.setblocking(False)
        self._listens = listens

    def send(self, packet: bytes) -> None:
        """Send to the peer, if there is one."""
        try:
            self._send(packet)
        except ConnectionRefusedError:  # of the packet before; this one has not left yet
            with suppress(OSError):
                self._send(packet)
        except OSError:
            pass  # the network is down, or the buffer is full: a lost packet, which the other end notices

    def receive(self, timeout_s: float) -> tuple[bytes, object] | None:
        """The next datagram and its sender's address."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._socket.recvfrom(self._max_bytes)
            except ConnectionRefusedError:
                continue  # nobody listened when our last packet came; told once, and no reason not to wait
            except OSError:
                pass  # none waits
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return None
            select.select([self._socket], [], [], remaining_s)

    def answer(self, sender: object) -> None:
        """Send to this address from now on."""
        self._peer = sender

    def _send(self, packet: bytes) -> None:
        if not self._listens:
            self._socket.send(packet)
        elif self._peer is not None:
            self._socket.sendto(packet, self._peer)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class SharedMemory:
    """A file with two slots, each the last packet of one direction behind a counter of packets.

    A packet that is read while it is written fails its CRC, and is read again at the next poll. The robot's
    end notices when a policy that was started again has made a new file, and goes on with that one.
    """

    def __init__(self, name: str, *, owns: bool, sends_bytes: int, receives_bytes: int) -> None:
        self._path = SHARED_MEMORY / name
        self._owns = owns
        sizes = [_slot_size(sends_bytes), _slot_size(receives_bytes)]
        self._size = sum(sizes)
        # The observation's slot comes first: what the policy's end, the owner, receives.
        self._send_at, self._receive_at = (sizes[1], 0) if owns else (0, sizes[0])
        self._receives_bytes = receives_bytes
        self._num_sent = self._num_seen = 0  # packets, as their counters have them
        self._map((_slot_file.create if owns else _slot_file.open_existing)(self._path, self._size))

    def send(self, packet: bytes) -> None:
        """Replace the packet in the slot."""
        self._find_new_file()
        start = self._send_at + COUNTER.size
        self._memory[start : start + len(packet)] = packet
        self._num_sent = (self._num_sent + 1) % 2**64
        COUNTER.pack_into(self._memory, self._send_at, self._num_sent)

    def receive(self, timeout_s: float) -> tuple[bytes, object] | None:
        """The packet in the slot, if it is whole and was not read before."""
        deadline = time.monotonic() + timeout_s
        while True:
            (count,) = COUNTER.unpack_from(self._memory, self._receive_at)
            if count != self._num_seen:
                start = self._receive_at + COUNTER.size
                packet = self._memory[start : start + self._receives_bytes]
                if is_intact(packet):  # otherwise it is being written, or the counter overtook it
                    self._num_seen = count
                    return packet, None
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S)

    def answer(self, sender: object) -> None:
        """There is one sender only."""

    def close(self) -> None:
        """Unmap the file; the owner removes it."""
        self._memory.close()
        if self._owns:
            _slot_file.remove(self._path, self._descriptor)
        os.close(self._descriptor)

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._identity = _slot_file.identity(os.fstat(descriptor))
        self._memory = mmap.mmap(descriptor, self._size)
        (self._num_sent,) = COUNTER.unpack_from(self._memory, self._send_at)
        (self._num_seen,) = COUNTER.unpack_from(self._memory, self._receive_at)

    def _find_new_file(self) -> None:
        """Where the policy's end has been started again, map its new file instead of the one it removed.

        As long as there is none that can be used, packets go into the old one, where nobody reads them.
        """
        if self._owns or _slot_file.identity_at(self._path) in (self._identity, None):
            return
        try:
            descriptor = _slot_file.open_existing(self._path, self._size)
        except LinkError:
            return
        self._memory.close()
        os.close(self._descriptor)
        self._map(descriptor)


def open_transport(url: str, *, is_policy: bool, sends_bytes: int, receives_bytes: int) -> Transport:
    """One end of the link that `url` names: udp://HOST:PORT or shm:///NAME.

    Raises:
        LinkError: the URL is of another form, or the system refuses.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise LinkError(f"link: {url!r} is no URL ({error}); {USAGE}") from None
    if parts.scheme == "udp" and host and port:
        if max(sends_bytes, receives_bytes) > MAX_DATAGRAM_BYTES:
            raise LinkError(
                f"link: {url!r} cannot carry packets of {max(sends_bytes, receives_bytes)} bytes "
                f"(at most {MAX_DATAGRAM_BYTES}); give shm:///NAME"
            )
        return Udp(host, port, listens=is_policy, max_bytes=receives_bytes)
    name = parts.path.removeprefix("/")
    if parts.scheme == "shm" and not parts.netloc and re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return SharedMemory(name, owns=is_policy, sends_bytes=sends_bytes, receives_bytes=receives_bytes)
    raise LinkError(f"link: {url!r} is not known; {USAGE}")


def _slot_size(num_bytes: int) -> int:
    return -(-(COUNTER.size + num_bytes) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
