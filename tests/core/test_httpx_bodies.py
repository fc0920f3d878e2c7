from trio.testing import MockClock

from crucible_trio.httpx_bodies import RequestContent


async def test_a_body_in_one_piece_may_be_sent_again(autojump_clock: MockClock) -> None:
    content = RequestContent(b"body")
    for _ in range(2):
        assert [chunk async for chunk in content] == [b"body"]
    assert [chunk async for chunk in aiter(content)] == [b"body"]  # the iterator returns itself
