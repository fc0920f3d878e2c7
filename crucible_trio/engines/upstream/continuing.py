"""Go on with an answer whose connection was lost. No trio: nothing here waits.

The second request has the answer so far as its last message (a prefill), and its reply goes on from there. This is
opt-in, because only some servers can do it, and others then write a new answer. Easy to get wrong:

* Only text of the answer can be continued. A model cannot go on inside its trace, a refusal or a tool call, and a
  server that enforces the form of an answer would begin the form again.
* A reply that repeats the answer must not be appended to it. So its beginning is held back and compared. In doubt the
  stream fails: a missing end is honest, and a doubled text is not.
* Many chat templates cut white space off the end of the last message. It is not sent, and skipped in the reply.
* The trace is over, so the mode of the second request is `standard`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Final, final

import msgspec

from crucible_trio.content import Continued, Piece, Reasoning, ServerFields, Text
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.request import Message, Request, TextFormat
from crucible_trio.settings.upstreams import Prefill

# Of one stream. A server that loses more connections has a problem that another request does not solve.
MAX_CONTINUATIONS: Final = 2

# Characters that a reply and the answer may begin with alike by accident, as two list items or code blocks do. A reply
# that repeats more is a new answer.
MIN_REPEATED: Final = 16


@final
class ContinuedAnswer:
    """The answer of one stream over all of its requests.

    Args:
        request: The client's request.
        prefill: How the server is asked to go on.

    Attributes:
        continuations: The requests after the first.
        has_reply: Whether the server has begun to reply to the last request.
        was_lost: Whether the connection of the last reply was lost.
    """

    def __init__(self, request: Request, prefill: Prefill) -> None:
        self.continuations = 0
        self.has_reply = False
        self.was_lost = False
        self._request = request
        self._prefill = prefill
        self._texts: list[str] = []
        self._is_answer_only = True  # a trace may come before it
        self._repeats: RepeatCheck | None = None  # until the reply goes on
        self._pieces = 0  # of text in the last reply
        self._spent = 0  # tokens of the replies before it
        self._usage: list[Usage] = []  # of the replies before it

    def next_request(self) -> Request | None:
        """The request that goes on with the answer. None if nothing can, so that the stream fails."""
        text = self._text().rstrip()
        ends_in_half = text.endswith("\N{REPLACEMENT CHARACTER}")
        limit = self._request.max_output_tokens
        rest = None if limit is None else limit - self._spent
        if (
            not self.was_lost
            or not self._is_answer_only
            or not text
            or ends_in_half
            or self.continuations == MAX_CONTINUATIONS
            or (rest is not None and rest < 1)
            or not _has_free_form(self._request)
        ):
            return None
        self.continuations += 1
        self.has_reply = False
        self.was_lost = False
        self._pieces = 0
        self._repeats = RepeatCheck(text, self._text()[len(text) :], echoes=self._prefill.echoes)
        messages = (*self._request.messages, Message("assistant", text))
        return msgspec.structs.replace(self._request, input=messages, mode="standard", max_output_tokens=rest)

    def add_fields(self, fields: dict[str, object]) -> None:
        """Add the fields that make the server go on to the body of a request."""
        if self.continuations:
            messages = fields["messages"]
            assert isinstance(messages, list)
            messages[-1] = {**messages[-1], **self._prefill.message}
            fields.update(self._prefill.body)

    def pass_on(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces to write, for the next pieces of a reply.

        Raises:
            EngineError: `upstream_ended_early`: the reply does not go on with the answer.
        """
        for piece in pieces:
            if isinstance(piece, ServerFields):
                yield piece
            elif self._repeats is None:
                self._note(piece)
                yield piece
            elif not isinstance(piece, Text):
                raise _not_continued("the reply to the second request does not begin with text.")
            elif text := self._repeats.feed(piece.text):
                yield from self._go_on(text, piece)

    def end(self) -> Iterator[Piece]:
        """The pieces that were held back, at the end of a whole reply. Raises as `pass_on`."""
        if self._repeats is not None:
            yield from self._go_on(self._repeats.end(), Text(""))

    def lose(self, usage: Usage, *, may_lack_text: bool) -> None:
        """The connection of the last reply was lost.

        Args:
            usage: The token counts of the reply so far.
            may_lack_text: Something was skipped that may have been text.
        """
        self.was_lost = not may_lack_text
        self._usage.append(usage)
        self._spent += self._pieces if usage.output_tokens is None else usage.output_tokens

    def finish(self, finish: Finish) -> Finish:
        """The result of the stream, from the result of its last reply: with the sum of the token counts."""
        if not self._usage:
            return finish
        replies = [*self._usage, finish.usage]
        # Only the first reply can have a trace.
        reasoning = [self._usage[0].reasoning_tokens, *(usage.reasoning_tokens or 0 for usage in replies[1:])]
        usage = Usage(
            _sum(usage.input_tokens for usage in replies),
            _sum(usage.output_tokens for usage in replies),
            _sum(reasoning),
        )
        return replace(finish, usage=usage)

    def _go_on(self, text: str, piece: Text) -> Iterator[Piece]:
        self._repeats = None
        yield Continued(len(self._text()))
        if text:
            going_on = Text(text, piece.logprobs)
            self._note(going_on)
            yield going_on

    def _note(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self._texts.append(piece.text)
        elif not isinstance(piece, Reasoning) or self._texts:
            self._is_answer_only = False
        self._pieces += 1

    def _text(self) -> str:
        # Pieces may end with half a character. If the last one does, that half becomes U+FFFD in the log too.
        return "".join(self._texts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@final
class RepeatCheck:
    """Decides whether a reply goes on with a text or repeats it.

    Args:
        sent: The text, without white space at its end.
        tail: The white space at its end.
        echoes: The server repeats the text before it goes on.
    """

    def __init__(self, sent: str, tail: str, *, echoes: bool) -> None:
        self._sent = sent if echoes else sent.lstrip()
        self._tail = tail
        self._echoes = echoes
        self._held = ""

    def feed(self, text: str) -> str:
        """Take the next piece of the reply.

        Returns:
            The text that goes on. Empty while that is not decided.

        Raises:
            EngineError: The reply does not go on with the text.
        """
        self._held += text
        if self._echoes:
            if not self._sent.startswith(self._held[: len(self._sent)]):
                raise _not_continued("the reply to the second request does not begin with the answer so far.")
            rest = self._held[len(self._sent) :]
        else:
            reply = self._held.lstrip()
            repeated = min(len(self._sent), MIN_REPEATED)
            if len(reply) >= repeated and reply.startswith(self._sent[:repeated]):
                raise _not_continued("the server repeats the answer instead of going on.")
            rest = "" if self._sent.startswith(reply) else self._held
        # White space alone may be the beginning of the tail.
        return self._without_tail(rest) if rest.strip() else ""

    def end(self) -> str:
        """The text that was held back, at the end of the reply. Raises as `feed`."""
        if not self._echoes:
            return self._without_tail(self._held)
        if not self._held.startswith(self._sent):
            raise _not_continued("the reply to the second request does not begin with the answer so far.")
        return self._without_tail(self._held[len(self._sent) :])

    def _without_tail(self, text: str) -> str:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(self._tail, text, strict=False))
        return text[len(list(alike)) :]


def _has_free_form(request: Request) -> bool:
    """Whether any text may follow the answer so far, and nothing that this module does not know of."""
    asked = request.parameters
    return (
        isinstance(asked.response_format, TextFormat | None)
        and asked.tool_choice in {None, "auto", "none"}
        and not request.extra
        and request.messages[-1].role != "assistant"  # the server may join it with the answer or not
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum. None if a count is missing."""
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def _not_continued(why: str) -> EngineError:
    message = f"The connection to the upstream server was lost, and {why}"
    return EngineError("upstream_ended_early", message, retryable=True)
