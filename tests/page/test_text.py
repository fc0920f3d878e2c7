"""The text on the page: Markdown in the browser, copying, scrolling, and the programs that do the same."""

from __future__ import annotations

import os
import sys

import msgspec
import pytest
import trio
import trio.lowlevel

from crucible_trio import Reasoning
from tests.browser import ANSWER, TURN

MARKDOWN = """# Leaves
They turn **red** and *yellow*, see [the botanist](https://plants.example/why) and `chlorophyll`.

1. First
2. Then
   - inside

```python
print("<b>")
```
"""
HTML = (
    "<h3>Leaves</h3><p>They turn <strong>red</strong> and <em>yellow</em>, see "
    '<span>the botanist<span class="target"> (https://plants.example/why)</span></span> and <code>chlorophyll</code>.'
    "</p>"
    '<ol><li value="1"><p>First</p></li><li value="2"><p>Then</p><ul><li><p>inside</p></li></ul></li></ol>'
    '<div class="code"><div class="bar"><span class="language">python</span>'
    '<button type="button" class="copy">Copy code</button></div><pre><code>print("&lt;b&gt;")</code></pre></div>'
)
SHOWN = f"{TURN}.querySelector('.answer .text').innerHTML"

HOSTILE = (
    "<img src=x onerror='document.title=1'>",
    "[click](javascript:document.title=1)",
    "![x](http://evil.example/x.png)",
    "<script>document.title=1</script>",
    "```<script>\n<script>document.title=1</script>\n```",
    "# <style>*{display:none}</style>",
    "- <iframe src='http://evil.example'></iframe>",
    "> <svg onload='document.title=1'>",
    "<http://evil.example>",
    "[a]: http://evil.example\n[a]",
    "&lt;script&gt;",
    '[x](x"onclick="document.title=1)',
    "\x00\x1b[31m\u202e",
)


async def test_markdown_is_rendered_piece_by_piece_as_it_would_be_as_a_whole(chromium, serving) -> None:
    async def engine(request):
        for character in MARKDOWN:
            yield character
            await trio.lowlevel.checkpoint()

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask(mode="standard")
        await page.status_is("Done.")
        assert await page.evaluate(SHOWN) == HTML


async def test_text_that_is_final_is_not_replaced(chromium, serving) -> None:
    more = trio.Event()

    async def engine(request):
        yield "One.\n\nTwo.\n\n"
        await more.wait()
        yield "Three."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask(mode="standard")
        await page.until(f"{ANSWER} === 'One.Two.'")
        await page.evaluate(f"{TURN}.querySelector('.answer p').id = 'kept'")  # as a selection of the user's would be
        more.set()
        await page.until(f"{ANSWER} === 'One.Two.Three.'")
        assert await page.evaluate("document.getElementById('kept').textContent") == "One."


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_becomes_no_element_and_no_request(chromium, serving, text) -> None:
    async def engine(request):
        yield Reasoning(text, 0)
        yield text
        yield f"\n\n{text}"

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask(text)
        await page.status_is("Done.")
        names = await page.evaluate(f"[...{TURN}.querySelectorAll('*')].map((element) => element.localName)")
        assert not {"img", "script", "iframe", "style", "svg", "a", "http"} & set(names)
        attributes = f"[...{TURN}.querySelectorAll('.text *')].flatMap((element) => element.getAttributeNames())"
        assert set(await page.evaluate(attributes)) <= {"class", "type", "value"}
        assert await page.evaluate("document.title") == "crucible_trio"
        assert not any("evil" in url for url in page.requests)
        await page.until("document.getElementById('verdict').textContent.endsWith('log.')")  # the very same text


async def test_answers_code_and_programs_can_be_copied(chromium, serving) -> None:
    async def engine(request):
        yield MARKDOWN

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.evaluate("""{
            window.copied = [];
            Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => copied.push(text) } });
        }""")
        await page.ask('It\'s "quoted"?', mode="standard")
        await page.status_is("Done.")
        await page.click("button", "Copy answer")
        await page.click("button", "Copy code")
        await page.click("DisclosureTriangle", "The same with a program")
        await page.until("document.querySelectorAll('#programs pre').length === 3")
        await page.find("group", "curl")
        await page.evaluate("document.querySelector('#programs .copy').click()")
        answer, code, curl = await page.evaluate("copied")
        assert (answer, code) == (MARKDOWN, 'print("<b>")')
        assert curl.startswith("# Start a stream")


async def test_open_programs_follow_the_stream_of_the_page(chromium, serving) -> None:
    async def engine(request):
        yield request.messages[-1].text

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.click("DisclosureTriangle", "The same with a program")
        await page.until("document.querySelectorAll('#programs pre').length === 3")
        for question in ("one", "two"):
            await page.ask(question, mode="standard")
            await page.answer_is(question)
            await page.status_is("Done.")
            snapshot = await served.snapshot()
            curl = await page.evaluate("document.querySelector('#programs pre').textContent")
            assert f"ID={snapshot.id}.{snapshot.last_seq}   # of the stream on the page" in curl
            assert f'"input":"{question}"' in curl
        await page.click("button", "New chat")
        assert "# yours" in await page.evaluate("document.querySelector('#programs pre').textContent")


async def test_without_a_clipboard_the_text_is_still_copied(chromium, serving) -> None:
    async def engine(request):
        yield "Text."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.evaluate("""{
            Object.defineProperty(navigator, "clipboard", { value: undefined });
            document.addEventListener("copy", () => { window.copied = document.activeElement.value; });
        }""")
        await page.ask(mode="standard")
        await page.status_is("Done.")
        await page.click("button", "Copy answer")
        await page.until("window.copied === 'Text.'")
        await page.find("button", "Copied")


@pytest.mark.slow
async def test_the_programs_get_the_same_text_as_the_page(chromium, serving, need_program, tmp_path) -> None:
    async def engine(request):
        yield Reasoning("Hm. ", 0)
        yield f"You said {request.messages[-1].text!r} in mode {request.mode}."

    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        question = "It's $HOME, \"é\" & `ls` \\n?\n'"
        await page.ask(question)
        await page.status_is("Done.")
        snapshot = await served.snapshot()
        await page.click("DisclosureTriangle", "The same with a program")
        await page.until("document.querySelectorAll('#programs pre').length === 3")
        texts = await page.evaluate("[...document.querySelectorAll('#programs pre')].map((text) => text.textContent)")
        curl, python, javascript = texts
        assert f"ID={snapshot.id}.{snapshot.last_seq} " in curl
        start, resume, slow = [part.partition("\n")[2] for part in curl.split("\n\n")]
        shell = 'curl() { command curl --silent "$@"; }\nsleep() { command sleep 0.2; }\n'

        async def run(*command: str) -> str:
            environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            done = await trio.run_process(command, capture_stdout=True, env=environment, cwd=tmp_path)
            return done.stdout.decode()

        need_program("curl")
        lines = (await run("bash", "-c", shell + start)).splitlines()
        deltas = [msgspec.json.decode(line[6:]).get("delta", "") for line in lines if line.startswith("data: ")]
        assert "".join(deltas) == "".join(snapshot.trace) + snapshot.output
        assert await run("bash", "-c", shell + resume) == ""  # the page has read the stream to its end
        printed = await run("bash", "-c", f"{shell}{slow}\ntrue")
        assert printed.count("data: ") == snapshot.last_seq == 5
        assert '"progress":{"activity":"ended"' in printed
        (tmp_path / "ask.py").write_text(python, "utf-8")
        printed = await run(sys.executable, "ask.py")
        assert printed == "".join(snapshot.trace) + snapshot.output + "\n5 records, 0 reconnects\n"
        program = javascript.replace("console.log(text);", "return text;")
        text = await page.evaluate(f"(async () => {{ {program} }})()")
        assert text == "".join(snapshot.trace) + snapshot.output


async def test_the_page_follows_the_text_until_the_user_scrolls_up(chromium, serving) -> None:
    more = [trio.Event() for _ in range(3)]

    async def engine(request):
        for event in more:
            yield "line\n\n" * 60
            await event.wait()

    from_end = "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)"
    distance = f"{from_end}(document.getElementById('conversation'))"
    paragraphs = f"{TURN}.querySelectorAll('.answer p').length"
    async with serving(engine) as served, chromium() as browser:
        page = await browser.open(served.url)
        await page.ask(mode="standard")
        await page.until(f"{paragraphs} === 60")
        await page.until(f"{distance} < 2")
        await page.evaluate("document.getElementById('conversation').scrollBy(0, -300)")
        await page.until("!document.getElementById('newest').hidden")
        top = await page.evaluate("document.getElementById('conversation').scrollTop")
        more[0].set()
        await page.until(f"{paragraphs} === 120")
        assert await page.evaluate("document.getElementById('conversation').scrollTop") == top
        await page.click("button", "Newest text")
        await page.until(f"{distance} < 2 && document.getElementById('newest').hidden")
        more[1].set()
        await page.until(f"{paragraphs} === 180")
        await page.until(f"{distance} < 2")
        more[2].set()
        await page.status_is("Done.")
