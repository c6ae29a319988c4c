"""Both ends of the link between a policy and a robot or a simulator in another process."""

from __future__ import annotations

import math
import time

from ._network import Array
from .contract import Contract
from .errors import LinkError
from .packets import MAX_VALUES, OBSERVATION, TARGET, Counts, Decoder, encode, packet_size
from .transports import open_transport

MAX_PACKETS = 100  # read at once; a control rate is never so far behind its robot
SILENCE_S = 0.1  # after which another sender may take over, or the same one with a clock that was set back


class _Link:
    """What both ends share: sending one kind of packet, and taking the other."""

    def __init__(self, url: str, contract: Contract, *, is_policy: bool) -> None:
        observation, target = contract.observation_width, contract.num_targets
        if max(observation, target) > MAX_VALUES:
            problem = f"a packet holds {MAX_VALUES} values, the contract asks for {max(observation, target)}"
            raise LinkError(f"link: {problem}; call Policy.step in the process that measures")
        sends, receives = (target, observation) if is_policy else (observation, target)
        self._decoder = Decoder(OBSERVATION if is_policy else TARGET, receives)
        self._transport = open_transport(
            url, is_policy=is_policy, sends_bytes=packet_size(sends), receives_bytes=packet_size(receives)
        )

    @property
    def counts(self) -> Counts:
        """Packets that came, by what became of them."""
        return self._decoder.counts

    def close(self) -> None:
        """Close the link."""
        self._transport.close()


class PolicyLink(_Link):
    """The policy's end; it opens the link.

    Args:
        url: udp://HOST:PORT to listen at, or shm:///NAME to make.
        contract: gives the widths.

    Raises:
        LinkError: the URL is of another form, packets would be too large, or the system refuses.
    """

    def __init__(self, url: str, contract: Contract) -> None:
        super().__init__(url, contract, is_policy=True)
        self._sender: object = None
        self._heard_s = -math.inf
        self.began_episode = False

    def receive(self, timeout_s: float) -> Array | None:
        """The newest observation `[D]` that has come since the last call, or None.

        `began_episode` tells whether a packet since the last call began an episode: the first of all, the
        first of another sender after the last one has been silent for `SILENCE_S`, or one of the same sender
        whose sequence number is 0 and that was sent later. All else that is no newer is stale.

        Args:
            timeout_s: how long to wait where none has come yet.
        """
        self.began_episode = False
        deadline = time.monotonic() + timeout_s
        found = False
        # What has come is read to its end, as only the newest observation matters; but a flood ends too.
        for _ in range(MAX_PACKETS):
            wait_s = 0.0 if found else max(0.0, deadline - time.monotonic())
            entry = self._transport.receive(wait_s)
            if entry is None:
                break
            found |= self._take(*entry)
        return self._decoder.values if found else None

    def _take(self, packet: bytes, sender: object) -> bool:
        opened = self._decoder.open(packet)
        if opened is None:
            return False
        begins = self._begins(*opened, sender)
        if not begins and (opened[0] <= self._decoder.sequence or sender != self._sender):
            self.counts.stale += 1
            return False
        self._decoder.accept(packet)
        self._heard_s = time.monotonic()
        self.began_episode |= begins
        self._sender = sender
        self._transport.answer(sender)
        return True

    def _begins(self, sequence: int, sent_ns: int, sender: object) -> bool:
        """Whether a packet begins an episode: a copy of one that came before does not."""
        if self._decoder.sequence < 0:
            return True
        is_silent = time.monotonic() - self._heard_s > SILENCE_S
        if sender != self._sender:
            return is_silent
        is_another = sent_ns > self._decoder.sent_ns or (is_silent and sent_ns != self._decoder.sent_ns)
        return sequence == 0 and is_another

    def send(self, target: Array, flags: int) -> None:
        """Send targets `[U]` as the answer to the last observation."""
        self._transport.send(encode(TARGET, max(self._decoder.sequence, 0), target, flags))


class RobotLink(_Link):
    """The robot's or the simulator's end; open it after the policy's.

    Args:
        url: of the policy's end.
        contract: gives the widths.

    Raises:
        LinkError: the URL is of another form, or the policy's end is not there (shared memory).
    """

    def __init__(self, url: str, contract: Contract) -> None:
        super().__init__(url, contract, is_policy=False)
        self._sequence = -1

    @property
    def flags(self) -> int:
        """Flags of the last target."""
        return self._decoder.flags

    def begin_episode(self) -> None:
        """Let the next observation begin an episode: the policy forgets what it remembers."""
        self._sequence = -1

    def send(self, observation: Array) -> None:
        """Send an observation `[D]`, in the contract's order and units."""
        self._sequence += 1
        self._transport.send(encode(OBSERVATION, self._sequence, observation))

    def receive(self, timeout_s: float) -> Array | None:
        """The targets `[U]` that answer the last observation sent, or None after `timeout_s`.

        Answers to older observations are passed over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            entry = self._transport.receive(max(0.0, deadline - time.monotonic()))
            if entry is None:
                return None
            opened = self._decoder.open(entry[0])
            if opened and opened[0] == self._sequence:
                self._decoder.accept(entry[0])
                return self._decoder.values
            if opened:
                self.counts.stale += 1
