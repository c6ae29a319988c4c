"""What goes over a link: one observation or one target in one packet, little-endian.

offset  size  field
0       4     "PIOB" observation to the policy, "PITG" target to the robot
4       2     version of this layout, 1
6       2     count of values
8       8     sequence number; a target has that of the observation it answers; 0 begins an episode
16      8     sender's monotonic clock in ns
24      4     flags of the step (`Flags`); 0 in an observation
28      4     CRC-32 of everything else in the packet, in order
32      4 n   values, float32
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass

import numpy as np

from ._network import Array

OBSERVATION, TARGET = b"PIOB", b"PITG"
VERSION = 1
HEADER = struct.Struct("<4sHHQqI")
CRC = struct.Struct("<I")
MAX_VALUES = 2**16 - 1  # of the count's two bytes
VALUES_AT = HEADER.size + CRC.size


@dataclass
class Counts:
    """Packets that came, by what became of them."""

    accepted: int = 0
    stale: int = 0
    """Older than the last one that was accepted, or from another sender while the episode's still sends."""
    wrong_size: int = 0
    """Not as long as the contract's width asks for."""
    malformed: int = 0
    """Another kind, version or count, or a CRC that does not match."""


class Decoder:
    """Opens the packets of one kind; the values of the last one accepted are in `values`.

    Args:
        kind: OBSERVATION or TARGET.
        count: values in a packet.
    """

    def __init__(self, kind: bytes, count: int) -> None:
        self.values: Array = np.zeros(count, np.float32)
        self.sequence = -1
        self.sent_ns = 0
        self.flags = 0
        self.counts = Counts()
        self._kind = kind

    def open(self, packet: bytes) -> tuple[int, int] | None:
        """Sequence number and sender's clock in ns of a packet that is whole; any other is counted."""
        if len(packet) != packet_size(self.values.size):
            self.counts.wrong_size += 1
            return None
        kind, version, count, sequence, sent_ns, _ = HEADER.unpack_from(packet)
        if (kind, version, count) != (self._kind, VERSION, self.values.size) or not is_intact(packet):
            self.counts.malformed += 1
            return None
        return int(sequence), int(sent_ns)

    def accept(self, packet: bytes) -> None:
        """Make a packet that is whole the last one."""
        _, _, _, self.sequence, self.sent_ns, self.flags = HEADER.unpack_from(packet)
        self.values[:] = np.frombuffer(packet, "<f4", self.values.size, VALUES_AT)
        self.counts.accepted += 1


def encode(kind: bytes, sequence: int, values: Array, flags: int = 0) -> bytes:
    """The packet of `values` `[count]`, sent now."""
    header = HEADER.pack(kind, VERSION, values.size, sequence, time.monotonic_ns(), flags)
    payload = values.astype("<f4", copy=False).tobytes()
    return header + CRC.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def packet_size(count: int) -> int:
    """Bytes of a packet of `count` values."""
    return VALUES_AT + 4 * count


def is_intact(packet: bytes) -> bool:
    """Whether the packet's CRC is that of its content."""
    (expected,) = CRC.unpack_from(packet, HEADER.size)
    return zlib.crc32(packet[VALUES_AT:], zlib.crc32(packet[: HEADER.size])) == expected
