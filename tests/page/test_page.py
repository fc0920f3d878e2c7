"""The demo page in a browser: it streams, resumes, slows down and stops as the native API promises."""

from __future__ import annotations

import re

import pytest
import trio
import trio.testing

from crucible_trio import EngineError, EngineInfo, Finish, Reasoning, Request
from crucible_trio.records import Usage
from tests.browser import ANSWER, TURN

TRACE = f"[...{TURN}.querySelectorAll('.segments li')].map((text) => text.textContent)"
IS_OPEN = f"{TURN}.querySelector('.reasoning details').open"
SUMMARY = f"{TURN}.querySelector('.reasoning summary').textContent"
VERDICT = "document.getElementById('verdict').textContent"


async def matches(page, snapshot) -> None:
    """The page shows exactly the text of the snapshot."""
    assert await page.evaluate(ANSWER) == snapshot.output
    assert await page.evaluate(TRACE) == snapshot.trace


async def test_a_deep_question_shows_the_trace_that_folds_away_and_then_the_answer(chromium, serving) -> None:
    second, answer, rest = trio.Event(), trio.Event(), trio.Event()

    async def engine(request):
        yield Reasoning("1. Leaves are green.\n", 0)
        await second.wait()
        yield Reasoning("2. It gets cold.\n", 1)
        await answer.wait()
        yield "Because"
        await rest.wait()
        yield " of\nautumn."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        assert await page.evaluate("document.getElementById('welcome').checkVisibility()")
        await page.ask("Why red?")
        await page.status_is("Reasoning…")
        assert await page.evaluate(IS_OPEN)
        assert await page.evaluate(SUMMARY) == "Thinking…"
        assert not await page.evaluate("document.getElementById('welcome').checkVisibility()")
        second.set()
        await page.until(f"{TRACE}.length === 2")
        answer.set()
        await page.answer_is("Because")
        await page.status_is("Answering…")
        assert not await page.evaluate(IS_OPEN)
        assert re.fullmatch(r"Thought for \d+ s", await page.evaluate(SUMMARY))
        rest.set()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).output == "Because of\nautumn."
        assert (await served.snapshot()).mode == "deep"
        await page.until(f'{VERDICT} === "Records 1 to 7, each exactly once. The text equals the server\'s log."')
        assert await page.content("reconnects") == "0"


async def test_a_follow_up_sends_the_conversation_and_a_new_chat_does_not(chromium, serving) -> None:
    asked = []

    async def engine(request):
        asked.append([(message.role, message.text) for message in request.messages])
        yield f"Answer {len(asked)}."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        for number, question in enumerate(["One?", "Two?"], 1):
            await page.ask(question, mode="standard")
            await page.answer_is(f"Answer {number}.")
            await page.status_is("Done.")
        await page.reload()  # both turns come back, and count for the next question
        await page.answer_is("Answer 2.")
        await page.status_is("Done.")
        await page.ask("Three?", mode="standard")
        await page.answer_is("Answer 3.")
        await page.status_is("Done.")
        questions = "[...document.querySelectorAll('.turn .question')].map((text) => text.textContent)"
        assert await page.evaluate(questions) == ["One?", "Two?", "Three?"]
        await page.click("button", "New chat")
        assert await page.evaluate("document.activeElement.id") == "question"
        assert await page.evaluate(questions) == []
        await page.ask("Four?", mode="standard")
        await page.answer_is("Answer 4.")
        assert asked == [
            [("user", "One?")],
            [("user", "One?"), ("assistant", "Answer 1."), ("user", "Two?")],
            [
                ("user", "One?"),
                ("assistant", "Answer 1."),
                ("user", "Two?"),
                ("assistant", "Answer 2."),
                ("user", "Three?"),
            ],
            [("user", "Four?")],
        ]


async def test_a_new_chat_leaves_the_old_stream_running(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield f"About {request.messages[-1].text}. "
        await more.wait()
        yield "More."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask("one", mode="standard")
        await page.answer_is("About one. ")
        await page.click("button", "New chat")
        await page.status_is("Ready.")
        assert await page.evaluate("document.querySelectorAll('.turn').length") == 0
        await page.ask("two", mode="standard")
        await page.answer_is("About two. ")
        assert [stream.status for stream in await served.pipeline.list()] == ["running", "running"]
        more.set()
        await page.status_is("Done.")
        await page.answer_is("About two. More.")
        await page.until("document.querySelectorAll('#marks li').length === 1")
        for stream in await served.pipeline.list():
            await stream.log.wait_finished()
        assert await page.evaluate("JSON.parse(localStorage.streams).length") == 2


async def test_the_history_keeps_ids_only_and_opens_a_stream_again(chromium, serving) -> None:
    async def engine(request):
        yield Reasoning("Secret thought.", 0)
        yield f"You asked {request.messages[-1].text}"

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await served.pipeline.start(Request("not from this browser"))
        await page.ask("for gold")
        await page.status_is("Done.")
        [_, stream] = sorted(await served.pipeline.list(), key=lambda stream: stream.created_at)
        assert await page.evaluate("Object.entries(localStorage)") == [["streams", f'["{stream.id}"]']]
        await page.click("button", "New chat")
        await page.click("DisclosureTriangle", "History")
        await page.until("document.querySelectorAll('#streams button').length === 1")
        await page.evaluate("document.querySelector('#streams button').click()")
        await page.answer_is("You asked for gold")
        await page.status_is("Done.")
        await matches(page, stream.snapshot())
        assert await page.evaluate(SUMMARY) == "Thought in 1 step"
        assert not await page.evaluate("document.getElementById('history').open")


async def test_the_history_says_why_it_has_no_list(chromium, serving) -> None:
    async def engine(request):
        yield "."

    shown = "document.getElementById('streams').textContent"
    async with chromium() as browser:
        async with serving(engine, keys={"alice": "k"}) as served:
            page = await browser.open(served.url)
            await page.click("DisclosureTriangle", "History")
            await page.until(f"{shown} === 'This server needs a key.'")
            await page.click("DisclosureTriangle", "History")
            await page.evaluate("sessionStorage.setItem('key', 'k')")
            await page.click("DisclosureTriangle", "History")
            await page.until(f"{shown} === 'The server has none of them now.'")
            await page.click("DisclosureTriangle", "History")
        await page.click("DisclosureTriangle", "History")
        await page.until(f"{shown} === 'The server cannot be reached.'")


async def test_the_history_closes_on_escape_and_when_the_user_goes_elsewhere(chromium, serving) -> None:
    async def engine(request):
        yield "."

    is_open = "document.getElementById('history').open"
    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url, width=360, height=740)
        await page.click("DisclosureTriangle", "History")
        assert await page.evaluate(is_open)
        [left, right] = await page.evaluate(
            "(({ left, right }) => [left, right])(document.querySelector('.popover').getBoundingClientRect())"
        )
        assert 0 <= left < right <= 360
        await page.press("Escape")
        assert not await page.evaluate(is_open)
        assert await page.evaluate("document.activeElement.textContent") == "History"
        for leave in (page.press("Tab"), page.click("textbox", "Question")):
            await page.click("DisclosureTriangle", "History")
            await page.until("document.getElementById('streams').textContent !== ''")
            assert await page.evaluate(is_open)
            await leave
            assert not await page.evaluate(is_open)


async def test_the_user_picks_the_model(chromium, serving) -> None:
    class Two:
        info = EngineInfo(name="two", models=("first", "second"))

        async def generate(self, request, output):
            await output.delta(request.model)
            return Finish()

    async with serving(Two()) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.until("document.getElementById('model').options.length === 2")
        await page.find("combobox", "Model")
        await page.evaluate("document.getElementById('model').value = 'second'")
        await page.ask()
        await page.answer_is("second")


async def test_a_standard_question_shows_its_answer_and_no_reasoning(chromium, serving) -> None:
    async def engine(request):
        yield f"You asked: {request.messages[-1].content}"

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask("¿Qué?\n🍁", mode="standard")
        await page.status_is("Done.")
        await page.answer_is("You asked: ¿Qué?\n🍁")
        assert (await served.snapshot()).mode == "standard"
        assert not await page.evaluate(f"{TURN}.querySelector('.reasoning').checkVisibility()")


async def test_tool_calls_are_shown_with_their_arguments_and_a_cut_one_says_so(chromium, serving) -> None:
    async def engine(request, output):
        await output.delta("Let me see.")
        async with output.tool_call("c1", "weather") as call:
            await call.arguments('{"city": ')
            await call.arguments('"<b>Zürich"}')
        async with output.tool_call("c2", "note") as call:
            await call.arguments('{"text": "')
            call.cut()
        await output.refusal(" No.")
        return Finish("tool_calls")

    parts = "['.name', '.arguments', '.state'].map((part) => item.querySelector(part).textContent)"
    calls = f"[...{TURN}.querySelectorAll('.calls li')].map((item) => {parts})"
    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask("Hot?", mode="standard")
        await page.status_is("Done: the model waits for the results of its tool calls.")
        await page.answer_is("Let me see. No.")
        assert await page.evaluate(calls) == [
            ["weather", '{"city": "<b>Zürich"}', "complete"],
            ["note", '{"text": "', "not whole: do not run it"],
        ]
        assert await page.evaluate(f"{TURN}.querySelector('.calls').checkVisibility()")
        await page.ask("Again?", mode="standard")
        await page.status_is("Done: the model waits for the results of its tool calls.")
        assert len(await page.evaluate(calls)) == 2


async def test_a_trace_that_the_user_opened_stays_open(chromium, serving) -> None:
    answer = trio.Event()

    async def engine(request):
        yield Reasoning("One.", 0)
        await answer.wait()
        yield "So."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.until(f"{TRACE}.length === 1")
        for _ in range(2):  # close it and open it
            await page.click("DisclosureTriangle", "Thinking…")
        answer.set()
        await page.status_is("Done.")
        assert await page.evaluate(IS_OPEN)


async def test_after_a_cut_by_the_user_the_page_resumes_at_its_last_id(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield Reasoning("Thinking. ", 0)
        yield "Before. "
        await more.wait()
        yield "While away. "

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.answer_is("Before. ")
        await page.note("document.getElementById('status')")
        await page.click("button", "Cut the connection")
        await page.noted("You cut the connection; back in two seconds…")
        more.set()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).output == "Before. While away. "
        events = [url for url in page.requests if "/events" in url]
        assert events[-1].endswith(f"/events?last_event_id={(await served.snapshot()).id}.4")
        assert await page.content("reconnects") == "1"
        assert await page.marks() == [
            "You cut the connection after record 4",
            "Resumed after record 4",
            "The stream ended with record 6",
        ]


async def test_after_a_reset_the_browser_reconnects_automatically(chromium, serving) -> None:
    more, again = trio.Event(), trio.Event()

    async def engine(request):
        yield "Before. "
        await more.wait()
        yield "Between. "
        await again.wait()
        yield "After."

    async with serving(engine, retry_milliseconds=500) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.answer_is("Before. ")
        await page.note("document.getElementById('status')")
        served.reset()
        await page.noted("Connection lost; the browser reconnects by itself…")
        await page.until("document.getElementById('reconnects').textContent === '1'")
        await page.status_is("Answering…")
        more.set()
        await page.answer_is("Before. Between. ")
        served.reset()
        again.set()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).output == "Before. Between. After."
        # The page opened only one EventSource, which sent the offset in its header.
        assert not any("last_event_id" in url for url in page.requests)
        assert await page.marks() == [
            "The connection was lost after record 2",
            "Resumed after record 2",
            "The connection was lost after record 3",
            "Resumed after record 3",
            "The stream ended with record 5",
        ]


async def test_a_reload_in_the_middle_continues_the_stream(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield Reasoning("Step one.", 0)
        yield Reasoning("Step two.", 1)
        yield "Before. "
        await more.wait()
        yield "After."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask("What then?", mode="deep")
        await page.answer_is("Before. ")
        await page.reload()
        await page.answer_is("Before. ")
        assert await page.evaluate(f"{TURN}.querySelector('.question').textContent") == "What then?"
        more.set()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).output == "Before. After."
        assert len(await served.pipeline.list()) == 1
        marks = [
            "The page was reloaded at record 5, and reads again from record 1",
            "The stream ended with record 7",
        ]
        await page.until("document.querySelectorAll('#marks li').length === 2")
        assert await page.marks() == marks
        # A reload after the end.
        await page.reload()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        await page.until("document.querySelectorAll('#marks li').length === 2")
        assert await page.marks() == marks


async def test_a_second_reload_before_the_first_has_restored_the_turns_keeps_them(chromium, serving) -> None:
    async def engine(request):
        yield f"About {request.messages[-1].text}."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        for question in ("one", "two", "three"):
            await page.ask(question, mode="standard")
            await page.answer_is(f"About {question}.")
            await page.status_is("Done.")
        script = await page.call(
            "Page.addScriptToEvaluateOnNewDocument", source="window.fetch = () => new Promise(() => {});"
        )
        await page.reload()
        await page.until("document.querySelectorAll('.turn').length === 1")  # and no answer comes for it
        await page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
        await page.reload()
        await page.answer_is("About three.")
        answers = "[...document.querySelectorAll('.answer .text')].map((text) => text.textContent)"
        assert await page.evaluate(answers) == ["About one.", "About two.", "About three."]


async def test_a_reload_after_the_stream_is_gone_says_so(chromium, serving) -> None:
    async def engine(request):
        yield "Soon gone."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.status_is("Done.")
        await served.pipeline.forget((await served.pipeline.list())[0])
        await page.reload()
        await page.status_is("The server does not have this stream any more.")
        await page.click("button", "New chat")
        await page.reload()
        await page.status_is("Ready.")


async def test_a_slow_reader_stops_the_model(chromium, serving) -> None:
    made = 0
    words = [f"{number} " for number in range(300)]
    attached = trio.Event()

    async def engine(request):
        nonlocal made
        await attached.wait()  # until a reader is there, nothing slows this stream down
        for word in words:
            made += 1
            yield word
            await trio.sleep(0.001)

    async with serving(engine, buffer_tokens=8) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.click("button", "Read slowly")
        await page.ask(mode="standard")
        while not any(stream.log.readers for stream in await served.pipeline.list()):
            await trio.sleep(0.01)
        attached.set()
        await page.until("document.getElementById('activity').className === 'waiting'")
        assert "The model waits for this reader, which has record" in "".join(await page.marks())
        await page.until(f"{ANSWER}.includes('3 ')")
        # The page may be reading a record of 8 words, the log may have the next one, and the buffer the next 8 and one.
        read = int((await page.evaluate(ANSWER)).split()[-1])
        assert made - read <= 3 * 8 + 8
        assert (await served.snapshot()).status == "running"
        assert await page.content("reconnects") == "0"
        await page.click("button", "Read slowly")
        await page.status_is("Done.")
        assert made == 300
        await matches(page, await served.snapshot())
        assert await page.content("reconnects") == "0"
        await page.until(f'{VERDICT}.endsWith("The text equals the server\'s log.")')
        assert [await page.content(name) for name in ("made", "buffered", "read")] == ["300", "0", "300"]
        kinds = "[...document.querySelectorAll('#marks li')].map((item) => item.className)"
        assert await page.evaluate(kinds) == ["slow", "waits", "fast", "end"]
        assert await page.evaluate("document.querySelectorAll('#chart rect.waits').length") > 0


async def test_a_slow_reader_closes_the_connections_of_the_records_that_it_has(chromium, serving) -> None:
    words = [f"{number} " for number in range(8)]  # a browser opens at most six connections to a server

    async def engine(request):
        for word in words:
            yield word

    async with serving(engine, buffer_tokens=1) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.click("button", "Read slowly")
        await page.ask(mode="standard")
        await page.status_is("Done.")
        assert (await served.snapshot()).last_seq > 6
        await matches(page, await served.snapshot())


async def test_the_lines_of_the_chart_meet_at_the_end(chromium, serving) -> None:
    words = trio.Event()

    async def engine(request):
        yield "First. "
        await words.wait()
        for number in range(100):
            yield f"{number} "

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.click("button", "Read slowly")
        await page.ask(mode="standard")
        await page.answer_is("First. ")
        words.set()
        await page.until("document.getElementById('activity').textContent === 'The model has finished.'")
        await page.click("button", "Read slowly")
        await page.status_is("Done.")
        await page.until(f"{VERDICT}.endsWith('log.')")
        end = "document.querySelector('#chart polyline.{}').getAttribute('points').split(' ').at(-1)"
        assert await page.evaluate(end.format("made")) == await page.evaluate(end.format("read"))
        await page.reload()
        await page.until(f"{VERDICT}.endsWith('log.')")
        assert await page.evaluate(end.format("made")) == await page.evaluate(end.format("read"))


async def test_switching_between_slow_and_fast_loses_nothing(chromium, serving) -> None:
    words = [f"{number} " for number in range(40)]
    more = trio.Event()

    async def engine(request):
        for number, word in enumerate(words):
            if number == 20:
                await more.wait()
            yield word

    async with serving(engine, buffer_tokens=1) as served, chromium() as browser:
        page = await browser.open(served.url)
        served.max_chunk = 30  # so that chunks end in the middle of events
        await page.click("button", "Read slowly")
        await page.ask(mode="standard")
        await page.until(f"{ANSWER}.length > 0")
        assert await page.evaluate("document.getElementById('slow').ariaPressed") == "true"
        await page.click("button", "Cut the connection")
        read = await page.content("read")
        await page.evaluate(
            "new Promise((resolve) => setTimeout(resolve, 400))"
        )  # longer than a word, shorter than a cut
        assert await page.content("read") == read
        await page.click("button", "Read slowly")
        await page.answer_is("".join(words[:20]))
        await page.click("button", "Read slowly")
        more.set()
        await page.until(f"{ANSWER}.includes('20 ')")
        await page.click("button", "Read slowly")
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).output == "".join(words)
        assert await page.content("reconnects") == "1"  # the cut. Switching is none


async def test_a_slow_reader_that_is_cut_reconnects_and_reads_to_the_end(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield "Before. "
        await more.wait()
        yield "After."

    async with serving(engine, heartbeat_seconds=0.05) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.click("button", "Read slowly")
        await page.ask()
        await page.answer_is("Before. ")
        [stream] = await served.pipeline.list()
        # Until the page has the answer to its request for the third record, and so has closed the connection before.
        # Chromium repeats a request that is cut before its answer, and the page does not notice.
        while stream.log.ever_read < 2 or stream.log.readers > 1:
            await trio.sleep(0.01)
        await page.note("document.getElementById('status')")
        served.reset()
        await page.noted("Connection lost; coming back…")
        await page.status_is("Answering…")
        more.set()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).output == "Before. After."
        assert any("last_event_id=" in url for url in page.requests)


async def test_stop_stops_the_model_and_keeps_the_text(chromium, serving) -> None:
    stopped = trio.Event()

    async def engine(request):
        try:
            yield "So far."
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.answer_is("So far.")
        await page.click("button", "Stop")
        await page.status_is("Stopped.")
        await stopped.wait()
        await matches(page, (await served.snapshot()))
        assert await page.content("activity") == "The model was stopped."
        assert ((await served.snapshot()).status, (await served.snapshot()).by) == ("cancelled", "client")
        assert await page.marks() == [
            "You asked to stop the model, with record 2 read",
            "The stream ended with record 3",
        ]


async def test_a_stop_that_does_not_reach_the_server_says_so(chromium, serving) -> None:
    async def engine(request):
        yield "So far."
        await trio.sleep_forever()

    async with chromium() as browser:
        async with serving(engine) as served:
            page = await browser.open(served.url)
            await page.ask()
            await page.answer_is("So far.")
        await page.until("document.getElementById('status').textContent.startsWith('Connection lost')")
        await page.click("button", "Stop")
        words = "The server cannot be reached, and was not told to stop."
        await page.until(f"document.getElementById('status').textContent.endsWith('{words}')")
        assert (await page.content("status")).startswith("Connection lost")
        assert await page.marks() == [
            "The connection was lost after record 2",
            "You asked to stop the model, with record 2 read",
        ]


@pytest.mark.parametrize("is_slow", [False, True])
async def test_stop_in_the_trace_leaves_the_trace_open(chromium, serving, is_slow) -> None:
    async def engine(request):
        yield Reasoning("I am being read.", 0)
        await trio.sleep_forever()

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        if is_slow:
            await page.click("button", "Read slowly")
        await page.ask()
        await page.status_is("Reasoning…")
        await page.click("button", "Stop")
        await page.status_is("Stopped.")
        assert await page.evaluate(IS_OPEN)
        await matches(page, await served.snapshot())


async def test_the_page_sends_nothing_after_the_end_and_204_stops_the_reconnecting(chromium, serving) -> None:
    async def engine(request):
        yield "All."

    async with serving(engine, retry_milliseconds=1) as served, chromium() as browser:
        page = await browser.open(served.url)
        # A timer that is still waiting would send something later.
        await page.evaluate("""{
            const { setTimeout: set, clearTimeout: clear } = window;
            window.timers = new Set();
            window.setTimeout = (call, ...more) => {
                const timer = set(() => { timers.delete(timer); call(); }, ...more);
                timers.add(timer);
                return timer;
            };
            window.clearTimeout = (timer) => { timers.delete(timer); clear(timer); };
        }""")
        await page.ask()
        await page.status_is("Done.")
        await page.until(f"{VERDICT}.endsWith('log.')")
        assert await page.evaluate("timers.size") == 0
        asked = len(page.requests)
        # A bare EventSource at the last id. No code closes it.
        snapshot = await served.snapshot()
        url = f"/v1/streams/{snapshot.id}/events?last_event_id={snapshot.id}.{snapshot.last_seq}"
        await page.evaluate(f"""new Promise((resolve) => {{
            window.source = new EventSource("{url}");
            source.onerror = () => source.readyState === EventSource.CLOSED && resolve();
        }})""")
        assert page.requests[asked:] == [served.url.removesuffix("/") + url]


# Hostile text


HOSTILE = "<img src=x onerror='document.title=1'> </script><script>document.title=1</script> &amp; <b>\x1b[31m"


async def test_the_models_text_is_never_markup(chromium, serving) -> None:
    async def engine(request):
        yield Reasoning(HOSTILE, 0)
        yield Reasoning(HOSTILE, 1)
        yield HOSTILE
        raise EngineError("hostile", HOSTILE, retryable=True)

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask(HOSTILE)
        await page.until("document.getElementById('status').textContent.startsWith('It failed: ')")
        await matches(page, (await served.snapshot()))
        assert (await served.snapshot()).trace == [HOSTILE, HOSTILE]
        assert await page.content("status") == f"It failed: {HOSTILE} Asking again may help."
        assert await page.evaluate("document.querySelectorAll('main img, main b, main script').length") == 0
        assert await page.evaluate("document.title") == "crucible_trio"
        assert not any(url.endswith("/x") for url in page.requests)


async def test_a_script_in_the_page_would_be_refused(chromium, serving) -> None:
    async def engine(request):
        yield "."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.evaluate("""{
            const image = document.createElement("img");
            image.setAttribute("onerror", "document.title = 'owned'");
            image.src = "data:,";
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.body.append(image, script);
        }""")
        while len(page.problems) < 2:
            await trio.sleep(0.01)
        assert await page.evaluate("document.title") == "crucible_trio"
        assert all("Content Security Policy" in str(problem) for problem in page.problems)
        page.problems.clear()


# Status messages


async def test_with_configured_keys_the_page_asks_for_one_and_keeps_it_for_the_tab(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield "Before. "
        await more.wait()
        yield "After."

    async with serving(engine, keys={"alice": "open sesame"}) as served, chromium() as browser:
        page = await browser.open(served.url)
        assert not await page.evaluate("document.getElementById('key').checkVisibility()")
        await page.ask()
        await page.status_is("This server needs a key.")
        assert await page.evaluate("document.activeElement.id") == "key"
        await page.type("wrong")
        await page.press("Enter")
        await page.status_is("The server does not know this key.")
        await page.type("open sesame")
        await page.press("Enter")
        await page.answer_is("Before. ")
        await page.click("button", "Cut the connection")
        await page.until("document.getElementById('reconnects').textContent === '1'")
        served.reset()
        await page.until("document.getElementById('reconnects').textContent === '2'")
        await page.reload()
        await page.answer_is("Before. ")
        assert await page.evaluate("[Object.keys(localStorage), document.cookie]") == [["streams"], ""]
        assert "sesame" not in await page.evaluate("JSON.stringify(localStorage)")
        await page.click("button", "Stop")  # sends the key, while reading uses the stream token
        await page.status_is("Stopped.")
        assert not any("sesame" in url for url in page.requests)


async def test_a_refused_question_says_why_and_can_be_asked_again(chromium, serving) -> None:
    async def engine(request):
        yield "Here."
        await trio.sleep_forever()

    for settings, status in (
        ({"max_streams": 1}, "The server is full. Try again in 5 seconds."),
        (
            {"keys": {"alice": "k"}, "max_streams_per_owner": 1},
            "You have as many streams running as you may have. Try again in 5 seconds.",
        ),
    ):
        async with serving(engine, **settings) as served, chromium() as browser:
            running = await served.pipeline.start(Request("x"), owner=next(iter(settings.get("keys", {})), ""))
            page = await browser.open(served.url)
            await page.evaluate("sessionStorage.setItem('key', 'k')")
            await page.ask()
            await page.status_is(status)
            await served.pipeline.forget(running)
            await trio.testing.wait_all_tasks_blocked()
            await page.click("button", "Ask")
            await page.answer_is("Here.")


async def test_an_invalid_question_gets_an_explanation(chromium, serving) -> None:
    async def engine(request):
        yield "."

    async with serving(engine, max_request_bytes=100) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask("Why? " * 30)
        await page.status_is("The question is too long for this server.")
        await page.evaluate("document.querySelector('[value=deep]').value = 'x'")
        await page.ask()
        await page.status_is("The server refused this: Invalid enum value 'x' - at `$.mode`.")


async def test_a_question_of_blanks_is_not_sent(chromium, serving) -> None:
    async def engine(request):
        yield "."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask(" \n ")
        assert await page.content("status") == "Ready."
        assert await page.evaluate("document.activeElement.id") == "question"
        assert await served.pipeline.list() == []


async def test_the_status_explains_how_the_stream_ended(chromium, serving) -> None:
    ends = {
        "a": (Finish("length"), "Ended early: the text reached its greatest length."),
        "b": (Finish("content_filter"), "Done (content_filter)."),
        "c": (EngineError("gone", "The model is gone.", retryable=False), "It failed: The model is gone."),
        "d": (ValueError("secret"), "It failed: The engine failed."),
    }

    async def engine(request):
        end, _ = ends[request.messages[-1].content]
        yield "Some."
        if isinstance(end, Exception):
            raise end
        yield end

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        for question, (_, status) in ends.items():
            await page.ask(question)
            await page.status_is(status)
            await page.answer_is("Some.")


async def test_a_server_that_shuts_down_says_so_and_finishes_the_stream(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield "Before. "
        await more.wait()
        yield "After."

    async with serving(engine) as served, chromium() as browser, trio.open_nursery() as nursery:
        page = await browser.open(served.url)
        await page.ask()
        await page.answer_is("Before. ")
        nursery.start_soon(served.pipeline.drain, 30)
        await page.status_is("Answering… The server is shutting down.")
        more.set()
        await page.status_is("Done. The server is shutting down.")
        await page.ask()
        await page.status_is("The server is shutting down. Try again in 5 seconds.")


async def test_an_unreachable_server_is_reported(chromium, serving) -> None:
    async def engine(request):
        yield "."

    async with chromium() as browser:
        async with serving(engine) as served:
            page = await browser.open(served.url)
        await page.ask()
        await page.status_is("The server cannot be reached.")


async def test_a_page_waits_when_the_stream_has_too_many_readers(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield "Before. "
        await more.wait()
        yield "After."

    async with serving(engine, max_readers_per_stream=1) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.answer_is("Before. ")
        await page.click("button", "Cut the connection")
        while (await served.snapshot()).status == "running" and (await served.pipeline.list())[0].log.readers:
            await trio.sleep(0.01)
        async with (await served.pipeline.list())[0].attach():
            await page.status_is("The stream has as many readers as it may have; trying again…")
        await page.status_is("Answering…")
        more.set()
        await page.status_is("Done.")
        await matches(page, (await served.snapshot()))


# Numbers


async def test_the_models_own_count_gives_the_tokens_per_second(chromium, serving) -> None:
    async def engine(request):
        yield "First"
        await trio.sleep(1)
        yield " and last."
        yield Finish("stop", Usage(1, 1001, 0))

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask()
        await page.status_is("Done.")
        timings = (await served.snapshot()).timings
        expected = round(1000 * 1000 / (timings.total_ms - timings.first_token_ms))
        await page.until("!document.getElementById('rate').textContent.startsWith('about')")
        assert abs(int(await page.content("rate")) - expected) <= 1


# Accessibility


async def test_the_page_can_be_used_with_the_keyboard_alone(chromium, serving) -> None:
    stopped = trio.Event()

    async def engine(request):
        try:
            yield request.messages[-1].content
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        focused = "document.activeElement.id || document.activeElement.value || document.activeElement.textContent"
        order = []
        await page.until("!document.getElementById('model').hidden")
        for _ in range(12):
            await page.press("Tab")
            order.append(await page.evaluate(focused))
            assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        beginning, end = ["History", "new", "conversation"], ["What happened", "The same with a program"]
        assert order == [*beginning, "question", "deep", "model", "ask", "cut", "slow", "stop", *end]
        for _ in range(8):
            await page.press("Tab", shift=True)
        assert await page.evaluate(focused) == "question"
        await page.type("One line")
        await page.press("Enter", shift=True)
        await page.call("Input.insertText", text="and another")
        await page.press("Enter")
        await page.answer_is("One line\nand another")
        while await page.evaluate(focused) != "stop":
            await page.press("Tab")
        await page.press(" ")
        await page.status_is("Stopped.")
        await stopped.wait()
        assert await page.evaluate(focused) == "stop"


async def test_a_long_conversation_scrolls_in_its_own_box_and_not_the_page(chromium, serving) -> None:
    async def engine(request):
        yield "Line.\n\n" * 20

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        for _ in range(4):
            await page.ask(mode="standard")
            await page.status_is("Done.")
        assert await page.evaluate("document.documentElement.scrollHeight") == 800


async def test_a_screen_reader_announces_the_status_and_not_every_piece(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield Reasoning("Hm.", 0)
        yield "word "
        await more.wait()
        for _ in range(100):
            yield "word "

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        for role, name in (
            ("textbox", "Question"),
            ("group", "Mode"),
            ("group", "Connection"),
            ("button", "Read slowly"),
            ("combobox", "Model"),
            ("image", "Tokens over time"),
            ("complementary", "Proof"),
            ("region", "Conversation"),
            ("main", ""),
        ):
            await page.find(role, name)
        await page.ask()
        await page.answer_is("word ")
        for role, name in (("heading", "Answer"), ("region", "Reasoning"), ("region", "Answer")):
            await page.find(role, name)
        await page.evaluate("""{
            window.said = [];
            const live = document.querySelectorAll("[aria-live], [role=status], [role=alert], [role=log], output");
            for (const region of live)
                new MutationObserver(() => said.push(region.textContent))
                    .observe(region, { childList: true, characterData: true, subtree: true });
        }""")
        more.set()
        await page.status_is("Done.")
        assert await page.evaluate("said") == ["Done."]


async def test_a_phone_can_ask_cut_and_stop_and_sees_the_proof(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield Reasoning("Thinking.", 0)
        await more.wait()
        yield "Answer. " * 300
        await trio.sleep_forever()

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url, width=390, height=844)
        await page.click("radio", "Deep")
        await page.click("button", "Ask")
        await page.status_is("Reasoning…")
        await page.click("button", "Cut")
        more.set()
        await page.status_is("Answering…")
        seen = "(({ top, bottom, width }) => top >= 0 && bottom <= innerHeight && width > 0)"
        for element in ("verdict", "chart", "cut", "slow", "stop", "question", "ask"):
            assert await page.evaluate(f"{seen}(document.getElementById('{element}').getBoundingClientRect())"), element
        room = "document.getElementById('conversation').clientHeight / innerHeight"
        assert await page.evaluate(room) > 0.25
        await page.click("button", "Stop")
        await page.status_is("Stopped.")
        await matches(page, await served.snapshot())
        await page.click("DisclosureTriangle", "What happened")
        assert await page.marks() == [
            "You cut the connection after record 2",
            "Resumed after record 2",
            "You asked to stop the model, with record 4 read",
            "The stream ended with record 5",
        ]


@pytest.mark.parametrize(
    ("width", "scheme"), [(320, "dark"), (390, "light"), (900, "dark"), (1280, "light"), (1280, "dark")]
)
async def test_the_page_fits_the_screen_and_has_enough_contrast(chromium, serving, width, scheme) -> None:
    async def engine(request):
        yield Reasoning("x" * 500, 0)
        yield Reasoning("second", 1)
        yield "y" * 500
        await trio.sleep_forever()

    async with serving(engine, keys={"alice": "k"}) as served, chromium() as browser:
        page = await browser.open(served.url, width=width, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        await page.evaluate("document.getElementById('ask').click()")  # the key's field shows
        await page.status_is("This server needs a key.")
        await page.type("k")
        await page.press("Enter")
        await page.answer_is("y" * 500)
        await page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        title = "document.querySelector('h1')"
        assert await page.evaluate(f"{title}.scrollWidth <= {title}.clientWidth && {title}.offsetHeight < 40")
        # Touch targets are at least 44 pixels high.
        visible = "[...document.querySelectorAll('button')].filter((button) => button.checkVisibility())"
        heights = await page.evaluate(f"{visible}.map((button) => button.offsetHeight)")
        assert min(heights) >= 44
        # WCAG 2.2, 1.4.3: a contrast of at least 4.5 for all text except disabled controls.
        contrasts = await page.evaluate("""{
            const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
            const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            const light = (colour) => {
                const [r, g, b] = channels(colour).map(linear);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ground = (element) => {
                const colour = getComputedStyle(element).backgroundColor;
                return /, 0\\)$/.test(colour) ? ground(element.parentElement) : colour;
            };
            const isReadable = (element) => element.checkVisibility() && element.innerText;
            const counts = (element) => element.ariaDisabled !== "true" && !element.matches("option, .unseen");
            const readable = [...document.querySelectorAll("body *")].filter((element) =>
                isReadable(element) && counts(element));
            readable.map((element) => {
                const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
                return [(pair[0] + 0.05) / (pair[1] + 0.05), element.outerHTML.slice(0, 80)];
            });
        }""")
        assert len(contrasts) > 15
        assert [(contrast, element) for contrast, element in contrasts if contrast < 4.5] == []
        paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(22, 23, 26)") == (scheme == "dark")
        moving = "[...document.querySelectorAll('*')].filter((e) => parseFloat(getComputedStyle(e).transitionDuration))"
        assert await page.evaluate(f"{moving}.length") == 0
