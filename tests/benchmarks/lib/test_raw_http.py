import asyncio
import contextlib

from benchmarks.lib.raw_http import AnswerReader, Exchange, exchange

OK = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
TWO = OK + b"HTTP/1.1 404 Not Found\r\nX-A: b\r\n\r\n"


def test_responses_are_read_however_they_are_split() -> None:
    for size in (1, 7, len(TWO)):
        reader = AnswerReader()
        for start in range(0, len(TWO), size):
            reader.feed(TWO[start : start + size])
        assert [(answer.status, answer.body) for answer in reader.answers] == [(200, b"hello"), (404, b"")]
        assert reader.answers[1].headers == {"x-a": "b"}
        assert reader.interim == [100]
        assert reader.complete == 2


def test_what_is_no_response_is_reported() -> None:
    reader = AnswerReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxoops\r\n\r\n")
    assert "no response" in reader.malformed


def _exchange(respond: bytes, **options: object) -> Exchange:
    """Exchange with a server that answers the first bytes with ``respond`` and closes."""

    async def run() -> Exchange:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(respond)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await exchange(("127.0.0.1", port), [b"hello"], **({"patience": 20} | options))  # type: ignore[arg-type]

    return asyncio.run(run())


def test_the_servers_end_of_a_connection_is_seen() -> None:
    result = _exchange(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert [answer.status for answer in result.answers] == [204]
    assert result.closed is not None
    assert result.sent == 5


def test_a_client_that_does_not_read_sees_it_too() -> None:
    result = _exchange(b"x" * 100, read=False)
    assert result.closed is not None
    assert result.answers == []


def test_a_client_that_leaves_does_not_wait() -> None:
    result = _exchange(b"", leave=0.0)
    assert result.seconds < 15
