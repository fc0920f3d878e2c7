// Programs that do the same as the page.

// `server`: its address. `input`, `mode`, `model`: of the question. `lastId`: the last event id, or null.
export function programs({ server, input, mode, model, lastId, hasKey }) {
  const body = { input, mode, ...(model && { model }) };
  return { curl: curl(server, body, lastId, hasKey), Python: python(server, body, hasKey), JavaScript: javascript(server, body, hasKey) };
}

// In single quotes a shell changes nothing. A quote itself ends them for a moment.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(server, body, lastId, hasKey) {
  const key = hasKey ? ` -H "Authorization: Bearer $KEY"` : "";
  const json = `-H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`;
  return `# Start a stream and read it. Press Ctrl-C in the middle: that is a cut.
curl -N ${server}/v1/streams${key} -H 'Accept: text/event-stream' \\
  ${json}

# Resume after the last complete line that begins with "id:".
ID=${lastId || "str_uBEsb66CVQGlaxwPH5stHA.43"}   # ${lastId ? "of the stream on the page" : "yours"}
curl -N ${server}/v1/streams/\${ID%.*}/events${key} -H "Last-Event-ID: $ID"

# Read slowly: take 5 records of a new stream and no more. The model fills its buffer and waits: see "progress".
ID=$(curl -s ${server}/v1/streams${key} \\
  ${json} | grep -o 'str_[^"/]*' | head -1)
curl -sN "${server}/v1/streams/$ID/events?window=5"${key} & sleep 6; curl -s ${server}/v1/streams/$ID${key}; kill $!
`;
}

function python(server, body, hasKey) {
  const fields = Object.entries(body).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const key = hasKey ? `, key=os.environ["KEY"]` : "";
  return `${hasKey ? "import os\n\n" : ""}import trio

from crucible_trio import OutputDelta, ReasoningDelta, Request
from crucible_trio.client import open_client


async def main():
    async with open_client("${server}"${key}) as client:
        async with client.start(Request(${fields.join(", ")})) as stream:
            async for record in stream:  # resumes after a cut, and gives each record once
                if isinstance(record, ReasoningDelta | OutputDelta):
                    print(record.delta, end="", flush=True)
    print(f"\\n{stream.last_seq} records, {stream.reconnects} reconnects")


trio.run(main)
`;
}

function javascript(server, body, hasKey) {
  const key = hasKey ? `, Authorization: \`Bearer \${KEY}\`` : "";
  return `// In a page of this server, or of an origin that it allows.
const response = await fetch("${server}/v1/streams", {
  method: "POST",
  headers: { "Content-Type": "application/json"${key} },
  body: JSON.stringify(${JSON.stringify(body)}),
});
const { events_url } = await response.json();
const source = new EventSource(new URL(events_url, "${server}")); // resumes after a cut
let text = "";
await new Promise((ended) => {
  source.onmessage = ({ data }) => {
    const record = JSON.parse(data);
    text += record.delta ?? "";
    if (/^stream\\.(completed|incomplete|failed|cancelled)$/.test(record.type)) {
      source.close();
      ended();
    }
  };
});
console.log(text);
`;
}
