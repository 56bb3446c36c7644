"""Frames on real socket pairs: whole, cut into pieces, too large, and to nobody."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from kernel_worker.testing import eventually
from kernel_worker.wire import (
    CONCLUDE_HEAD,
    DONE_RECORD,
    HEAD,
    MAX_FRAME,
    RUN_HEAD,
    Channel,
    ChannelClosed,
    Frame,
    FrameError,
    pack,
    pack_json,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The kernel's end and the executor's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    kernel, executor = Channel(ours), Channel(theirs)
    yield kernel, executor
    kernel.close()
    executor.close()


def test_frames_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    kernel, executor = ends

    kernel.queue(pack(Frame.RETIRE))
    kernel.queue(pack(Frame.RUN, b"payload") + pack_json(Frame.CANCEL, {"tag": 1}))
    flushed = kernel.flush()

    assert flushed
    assert executor.receive() == [(Frame.RETIRE, b""), (Frame.RUN, b"payload"), (Frame.CANCEL, b'{"tag":1}')]


def test_a_frame_that_comes_byte_by_byte_is_put_together(ends: tuple[Channel, Channel]) -> None:
    kernel, executor = ends
    data = pack(Frame.RUN, b"abc") + pack(Frame.RETIRE)

    received = []
    for position in range(len(data)):
        executor.send(data[position : position + 1])
        received.append(kernel.receive())

    assert [frames for frames in received if frames] == [[(Frame.RUN, b"abc")], [(Frame.RETIRE, b"")]]


def test_nothing_to_read_is_no_frame_and_no_error(ends: tuple[Channel, Channel]) -> None:
    kernel, _ = ends

    assert kernel.receive() == []


def test_a_megabyte_passes_in_pieces_while_the_other_side_reads(ends: tuple[Channel, Channel]) -> None:
    kernel, executor = ends
    payload = os.urandom(3_000_000)
    received: list[tuple[int, bytes]] = []

    def read() -> None:
        while not received:
            received.extend(executor.receive())

    reader = threading.Thread(target=read)
    kernel.queue(pack(Frame.RUN, payload))
    first = kernel.flush()
    reader.start()
    eventually(kernel.flush)
    reader.join()

    assert not first  # it did not fit at once
    assert kernel.out_bytes == 0
    assert received == [(Frame.RUN, payload)]


def test_an_impossible_length_is_refused_before_it_is_waited_for(ends: tuple[Channel, Channel]) -> None:
    kernel, executor = ends

    executor.send(HEAD.pack(MAX_FRAME + 1, Frame.DONE) + b"x")

    with pytest.raises(FrameError, match=r"frame of kind 6 claims \d+ bytes"):
        kernel.receive()


def test_frames_before_nonsense_in_the_same_read_are_lost_with_it_but_the_error_repeats(
    ends: tuple[Channel, Channel],
) -> None:
    kernel, executor = ends

    executor.send(pack(Frame.DONE, b"") + b"\xff" * 64)

    with pytest.raises(FrameError):
        kernel.receive()
    executor.send(b"more")
    with pytest.raises(FrameError):
        kernel.receive()


def test_the_end_of_the_other_side_is_an_error_for_reader_and_writers(ends: tuple[Channel, Channel]) -> None:
    kernel, executor = ends
    executor.close()
    kernel.queue(pack(Frame.RETIRE))

    with pytest.raises(ChannelClosed):
        kernel.receive()
    with pytest.raises(ChannelClosed):
        kernel.flush()
    with pytest.raises(ChannelClosed):
        kernel.send(pack(Frame.RETIRE))


def test_frames_sent_before_the_end_are_still_read(ends: tuple[Channel, Channel]) -> None:
    kernel, executor = ends
    executor.send(pack(Frame.DONE, b"last words"))
    executor.close()

    assert kernel.receive() == [(Frame.DONE, b"last words")]
    with pytest.raises(ChannelClosed):
        kernel.receive()


def test_a_closed_channel_reads_and_writes_no_more_and_closes_again(ends: tuple[Channel, Channel]) -> None:
    kernel, _ = ends

    kernel.close()
    kernel.close()

    with pytest.raises(ChannelClosed):
        kernel.receive()
    with pytest.raises(ChannelClosed):
        kernel.send(b"x")


@pytest.mark.parametrize(
    ("struct", "size"),
    [(HEAD, 5), (RUN_HEAD, 28), (CONCLUDE_HEAD, 5), (DONE_RECORD, 13)],
    ids=["head", "run", "conclude", "done"],
)
def test_records_have_the_same_size_everywhere(struct: object, size: int) -> None:
    """Both sides of a socket pair are of one version, but a padded layout would differ between machines' C types."""
    assert struct.size == size  # type: ignore[attr-defined]
