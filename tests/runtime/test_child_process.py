"""Messages between the control loop and the processes beside it."""

from __future__ import annotations

import resource
import socket

import pytest
from vla_runtime.child_process import ChildEndedError, MessageSocket


def pair() -> tuple[MessageSocket, MessageSocket]:
    """Two ends of one connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return MessageSocket(ours), MessageSocket(theirs)


def test_messages_arrive_whole_and_in_order() -> None:
    """Also large ones; then the end is told."""
    ours, theirs = pair()
    sent = [{"data": b"x" * 50_000, "number": 1}, {"number": 2}, {}]
    for message in sent:
        ours.send(message)
    ours.end_of_messages()
    assert [theirs.receive(1.0) for _ in sent] == sent
    with pytest.raises(ChildEndedError):
        theirs.receive(1.0)
    assert ours.receive(0.0) is None


def test_a_message_maps_no_memory() -> None:
    """A loop that changes its memory map waits for whoever reads it, whatever its priority."""
    ours, theirs = pair()

    def exchange(count: int) -> int:
        """Page faults meanwhile."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for number in range(count):
            ours.send({"number": number})
            assert theirs.receive(1.0) == {"number": number}
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    exchange(50)
    assert exchange(500) < 100, "fewer than one for five messages"
