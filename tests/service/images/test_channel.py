"""Messages with descriptors, and memory files."""

import fcntl
import os
import socket

import pytest

from service.images.channel import (
    MAX_MESSAGE,
    Channel,
    ChannelClosed,
    close_all,
    map_or_copy,
    memory_file,
    seal,
    socket_pair,
    write_all,
)


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def ends(request):
    """Return two connected channels, of both kinds of sockets."""
    first, second = map(Channel, socket.socketpair(socket.AF_UNIX, request.param))
    yield first, second
    first.close()
    second.close()


def test_a_message_arrives_with_its_descriptors(ends):
    file = memory_file()
    write_all(file, [b"pix", memoryview(b"els")])
    ends[0].send({"op": "decode", "size": [1, 2]}, [file, file])
    os.close(file)
    message, files = ends[1].receive()
    assert message == {"op": "decode", "size": [1, 2]}
    assert [os.pread(number, 10, 0) for number in files] == [b"pixels", b"pixels"]
    assert all(fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for number in files)
    close_all(files)


def test_messages_are_kept_apart(ends):
    ends[0].send({"first": "a" * 5000})
    ends[1].socket.setblocking(False)
    assert ends[1].receive() == ({"first": "a" * 5000}, [])
    assert ends[1].receive() is None
    ends[0].send({"second": 2})
    assert ends[1].receive() == ({"second": 2}, [])


def test_a_stream_may_bring_a_message_in_pieces():
    first, second = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    second.socket.setblocking(False)
    for piece in (b"\0\0", b'\0\x07{"a"', b":1}"):
        assert second.receive() is None
        first.socket.sendall(piece)
    assert second.receive() == ({"a": 1}, [])
    first.close()
    second.close()


def test_the_end_of_the_other_process_is_noticed(ends):
    ends[0].close()
    with pytest.raises(ChannelClosed):
        ends[1].receive()
    with pytest.raises(OSError, match="pipe"):
        ends[1].send({})


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\2{]", b"\0\0\0\1{}"])
def test_what_is_no_message_is_an_error(ends, data):
    ends[0].socket.sendall(data)
    with pytest.raises(ValueError, match=r"message|JSON|unexpected"):
        ends[1].receive()


def test_a_message_has_a_largest_size(ends):
    with pytest.raises(ValueError, match="bytes"):
        ends[0].send({"a": "a" * MAX_MESSAGE})


def test_the_system_has_one_of_the_kinds_of_sockets():
    first, second = socket_pair()
    with first, second:
        assert first.type in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)


def test_a_memory_file_is_mapped_once_it_cannot_shrink():
    file = memory_file(6)
    with pytest.raises(ValueError, match="not sealed"):
        map_or_copy(file, 6)
    seal(file)
    with pytest.raises(ValueError, match="another size"):
        map_or_copy(file, 7)
    content = map_or_copy(file, 6)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(file, 0)
    os.close(file)
    content[:3] = b"abc"
    assert bytes(content) == b"abc\0\0\0"


def test_a_system_without_memory_files_has_unlinked_temporary_ones(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = memory_file()
    assert not list(tmp_path.iterdir())
    write_all(file, [b"abc"])
    seal(file)
    content = map_or_copy(file, 3)
    os.ftruncate(file, 0)
    assert content == b"abc"
    os.close(file)
