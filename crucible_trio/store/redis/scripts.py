"""What is in Redis, and the scripts that change it.

| key | content |
|---|---|
| `{crucible:ID}:log` | a Redis stream: for each record an entry `EPOCH-NUMBER`, its field `f` or, for the last, `e` |
| `{crucible:ID}:meta` | a hash: epoch, head, state (`r` running, `d` done), owner, facts, schema number |
| `{crucible:ID}:lease` | the process that generates the stream, while it is alive |
| `{crucible:ID}:gone` | outlives the stream: `o` and the owner. `x` if it was deleted |
| `{crucible:ID}:change:NAME` | a change of the number of readers that was counted. Kept for a minute |
| `crucible:key:HASH` | an idempotency key: `p` (pending) or `s` (started), the request's digest, the stream's id |
| `crucible:label:HASH` | the id of the newest stream with a label |
| `crucible:own:OWNER` | a sorted set: the owner's streams by the time of their start |
| `crucible:run:OWNER` | a sorted set: the owner's running streams by the end of their lease |
| `crucible:ctl:PROCESS` | a Redis stream: messages to a process |
| `crucible:process:PROCESS` | the process is alive. Setting it shows whether Redis takes writes |

Epoch 1 is the process that generates, epoch 2 is a process that has ended the stream in its place. An append with an
older epoch is refused, and no entry id is used twice. So no clock decides who may write. Every key expires.

Every script can be repeated: it skips the steps that were done before. Times are those of Redis' clock.
"""

from __future__ import annotations

import hashlib
from typing import Final, final

SCHEMA: Final = 1
"""The number of this layout. A process refuses streams with a larger number."""


@final
class Script:
    """A Lua script.

    Attributes:
        text: Its text.
        sha: The name under which Redis caches it.
    """

    def __init__(self, text: str) -> None:
        self.text = _COMMON + text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def log_key(stream_id: str) -> str:
    """The key of a stream's records."""
    return f"{{crucible:{stream_id}}}:log"


def control_key(process: str) -> str:
    """The key of the messages to a process."""
    return f"crucible:ctl:{process}"


def alive_key(process: str) -> str:
    """The key that a process keeps while it is alive."""
    return f"crucible:process:{process}"


def idempotency_key(owner: str, key: str) -> str:
    """The key of an owner's idempotency key. Both may hold any character, so their lengths are hashed as well."""
    return f"crucible:key:{_hash(owner, key)}"


def label_key(owner: str, label: str) -> str:
    """The key of the newest stream that an owner has started with a label."""
    return f"crucible:label:{_hash(owner, label)}"


def _hash(*texts: str) -> str:
    parts = [text.encode(errors="surrogatepass") for text in texts]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).hexdigest()


_COMMON: Final = """
local call = redis.call
local function key(id, what) return '{crucible:' .. id .. '}:' .. what end
local function now() local t = call('TIME'); return t[1] * 1000 + math.floor(t[2] / 1000) end
local function findable(id, owner, idem, digest, label, ttl, extra)
  call('HSET', key(id, 'meta'), 'started', '1', 'idem', idem, 'label', label)
  if label ~= '' then call('SET', label, id, 'PX', ttl) end
  call('ZADD', 'crucible:own:' .. owner, 'NX', now(), id)
  call('PEXPIRE', 'crucible:own:' .. owner, ttl)
  if idem ~= '' then call('SET', idem, 's' .. digest .. id, 'PX', ttl + extra) end
end
local function labelled(id, label)
  return label and label ~= '' and call('GET', label) == id
end
local function finish(id, kept, extra)
  local m = call('HMGET', key(id, 'meta'), 'owner', 'idem', 'forgotten', 'label')
  if m[3] then kept = 60000 end
  call('HSET', key(id, 'meta'), 'state', 'd')
  call('PEXPIRE', key(id, 'meta'), kept)
  call('PEXPIRE', key(id, 'log'), kept)
  call('PEXPIRE', key(id, 'gone'), kept + extra)
  if m[2] and m[2] ~= '' then call('PEXPIRE', m[2], kept + extra) end
  if labelled(id, m[4]) then call('PEXPIRE', m[4], kept) end
  if call('PTTL', 'crucible:own:' .. m[1]) < kept then call('PEXPIRE', 'crucible:own:' .. m[1], kept) end
  call('DEL', key(id, 'lease'))
  call('ZREM', 'crucible:run:' .. m[1], id)
end
"""

# Arguments: process, lease, ttl, kept, extra (milliseconds). Then for each stream: id, number of the first frame, count
# of frames, whether the last one is terminal, count of facts (0 or 7), facts, frames. The facts come with record 1:
# owner, facts, schema, whether the stream has started, idempotency key, digest, label key.
# Answer for each stream: its head. Less than the first frame's number - 1 if Redis has lost records. -2 if another
# process has ended the stream, -3 if it was deleted.
APPEND: Final = Script(
    """
local process, lease, ttl, kept, extra = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local out, i = {}, 6
while ARGV[i] do
  local id, first, n = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local last, facts = ARGV[i + 3], tonumber(ARGV[i + 4])
  local f = i + 5
  local at = f + facts
  i = at + n
  local meta, log = key(id, 'meta'), key(id, 'log')
  local m = call('HMGET', meta, 'epoch', 'head', 'state')
  local answer
  if not m[1] then
    if call('GET', key(id, 'gone')) == 'x' then
      answer = -3
    elseif facts == 0 then
      answer = 0
    else
      local owner = ARGV[f]
      call('DEL', log) -- it is left over if Redis has lost the other key alone
      call('HSET', meta, 'epoch', '1', 'head', '0', 'state', 'r', 'owner', owner, 'facts', ARGV[f + 1],
        'schema', ARGV[f + 2], 'process', process)
      call('SET', key(id, 'gone'), 'o' .. owner, 'PX', ttl + extra)
      call('SET', key(id, 'lease'), process, 'PX', lease)
      if ARGV[f + 3] == '1' then findable(id, owner, ARGV[f + 4], ARGV[f + 5], ARGV[f + 6], ttl, extra) end
      m = {'1', '0', 'r'}
    end
  end
  if not answer then
    local head = tonumber(m[2])
    if m[1] ~= '1' then
      answer = -2
    elseif first > head + 1 then
      answer = head
    else
      for k = head - first + 2, n do
        call('XADD', log, '1-' .. (first + k - 1), (last == '1' and k == n) and 'e' or 'f', ARGV[at + k - 1])
      end
      answer = math.max(head, first + n - 1)
      if answer > head then call('HSET', meta, 'head', answer) end
      if head == 0 then
        call('PEXPIRE', log, ttl)
        call('PEXPIRE', meta, ttl)
      end
      if last == '1' and m[3] == 'r' then finish(id, kept, extra) end
    end
  end
  out[#out + 1] = answer
end
return out
"""
)

# Arguments: process, lease, ttl, extra. Then for each running stream: id, whether it is paused.
# Answer for each stream: its head, 0 if Redis has lost it, -2 if another process has ended it.
HEARTBEAT: Final = Script(
    """
local process, lease, ttl, extra = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
-- The first write, because a full Redis refuses no later one.
call('SET', 'crucible:process:' .. process, '1', 'PX', lease)
local ctl = 'crucible:ctl:' .. process
if call('EXISTS', ctl) == 0 then call('XADD', ctl, '*', 'm', '') end
call('PEXPIRE', ctl, ttl)
local out, time = {}, now()
for i = 5, #ARGV, 2 do
  local id = ARGV[i]
  local m = call('HMGET', key(id, 'meta'), 'epoch', 'head', 'owner', 'idem', 'state', 'label')
  if not m[1] then
    out[#out + 1] = 0
  elseif m[1] ~= '1' then
    out[#out + 1] = -2
  elseif call('XLEN', key(id, 'log')) < tonumber(m[2]) then
    call('DEL', key(id, 'meta')) -- without its records it is of no use. Its process writes both again
    out[#out + 1] = 0
  else
    if m[5] == 'r' then
      call('SET', key(id, 'lease'), ARGV[i + 1] == '1' and process .. ' paused' or process, 'PX', lease)
      call('PEXPIRE', key(id, 'meta'), ttl)
      call('PEXPIRE', key(id, 'log'), ttl)
      call('PEXPIRE', key(id, 'gone'), ttl + extra)
      call('PEXPIRE', 'crucible:own:' .. m[3], ttl)
      if m[4] and m[4] ~= '' then call('PEXPIRE', m[4], ttl + extra) end
      if labelled(id, m[6]) then call('PEXPIRE', m[6], ttl) end
      if m[3] ~= '' then
        call('ZADD', 'crucible:run:' .. m[3], time + lease, id)
        call('PEXPIRE', 'crucible:run:' .. m[3], 2 * lease)
      end
    end
    out[#out + 1] = tonumber(m[2])
  end
end
return out
"""
)

# Arguments: id, whether to answer with the facts.
# Answer: epoch, head, state, owner, schema, started, forgotten, lease, gone, facts.
LOOK: Final = Script(
    """
local id = ARGV[1]
local m = call('HMGET', key(id, 'meta'), 'epoch', 'head', 'state', 'owner', 'schema', 'started', 'forgotten')
m[8] = call('GET', key(id, 'lease'))
m[9] = call('GET', key(id, 'gone'))
m[10] = ARGV[2] == '1' and call('HGET', key(id, 'meta'), 'facts')
return m
"""
)

# Arguments: ids. Answer for each: head (-1: gone), state, lease.
CHECK: Final = Script(
    """
local out = {}
for i, id in ipairs(ARGV) do
  local m = call('HMGET', key(id, 'meta'), 'head', 'state')
  out[i] = {tonumber(m[1] or '-1'), m[2], call('GET', key(id, 'lease'))}
end
return out
"""
)

# Ends a stream whose process is dead. Arguments: id, number of the first frame, kept, extra, frames. The last frame is
# terminal. Answer: the new head, or -1 if the stream is not as it was.
SEAL: Final = Script(
    """
local id, first, meta = ARGV[1], tonumber(ARGV[2]), key(ARGV[1], 'meta')
local m = call('HMGET', meta, 'epoch', 'head', 'state')
if m[1] ~= '1' or m[3] ~= 'r' or tonumber(m[2]) ~= first - 1 or call('EXISTS', key(id, 'lease')) == 1 then return -1 end
for k = 5, #ARGV do
  call('XADD', key(id, 'log'), '2-' .. (first + k - 5), k == #ARGV and 'e' or 'f', ARGV[k])
end
local head = first + #ARGV - 5
call('HSET', meta, 'epoch', '2', 'head', head)
finish(id, tonumber(ARGV[3]), tonumber(ARGV[4]))
return head
"""
)

# Arguments: idempotency key, digest (32 bytes), id, milliseconds that the claim holds.
# Answer: the id of the stream that has the key, 0 if another start with the key is under way, -1 for another request.
CLAIM: Final = Script(
    """
local held = call('GET', ARGV[1])
if not held then
  call('SET', ARGV[1], 'p' .. ARGV[2] .. ARGV[3], 'PX', ARGV[4])
  return ARGV[3]
end
if string.sub(held, 2, 33) ~= ARGV[2] then return -1 end
local id = string.sub(held, 34)
if string.sub(held, 1, 1) == 's' or id == ARGV[3] then return id end
return 0
"""
)

# Arguments: idempotency key, id.
RELEASE: Final = Script(
    """
local held = call('GET', ARGV[1])
if held and string.sub(held, 34) == ARGV[2] then call('DEL', ARGV[1]) end
return 1
"""
)

# Arguments: id, owner, idempotency key or nothing, digest, ttl, extra, label key or nothing.
# Answer: 1, or 0 if another stream has the key or Redis has lost the stream.
START: Final = Script(
    """
local id, owner, idem = ARGV[1], ARGV[2], ARGV[3]
if call('EXISTS', key(id, 'meta')) == 0 then return 0 end
if idem ~= '' then
  local held = call('GET', idem)
  if held and string.sub(held, 34) ~= id then return 0 end
end
findable(id, owner, idem, ARGV[4], ARGV[7], tonumber(ARGV[5]), tonumber(ARGV[6]))
return 1
"""
)

# Counts a running stream of an owner. Arguments: owner, id, limit, lease. Answer: 0 if the owner is at the limit.
RESERVE: Final = Script(
    """
local run, time = 'crucible:run:' .. ARGV[1], now()
call('ZREMRANGEBYSCORE', run, '-inf', time)
if not call('ZSCORE', run, ARGV[2]) and call('ZCARD', run) >= tonumber(ARGV[3]) then return 0 end
call('ZADD', run, time + ARGV[4], ARGV[2])
call('PEXPIRE', run, 2 * ARGV[4])
return 1
"""
)

# Removes a stream that has not started. Arguments: id, owner.
DROP: Final = Script(
    """
local id = ARGV[1]
call('ZREM', 'crucible:run:' .. ARGV[2], id)
call('DEL', key(id, 'meta'), key(id, 'log'), key(id, 'lease'), key(id, 'gone'))
return 1
"""
)

# Deletes a stream. A running one keeps its records until it has ended, for the readers that follow it.
# Its process is told. Arguments: id, owner, ttl, message.
FORGET: Final = Script(
    """
local id, meta = ARGV[1], key(ARGV[1], 'meta')
local m = call('HMGET', meta, 'state', 'process', 'label')
if labelled(id, m[3]) then call('DEL', m[3]) end
call('ZREM', 'crucible:own:' .. ARGV[2], id)
call('SET', key(id, 'gone'), 'x', 'PX', ARGV[3])
if m[1] == 'd' then
  call('DEL', meta, key(id, 'log'), key(id, 'lease'))
elseif m[1] then
  call('HSET', meta, 'forgotten', '1')
end
if m[2] then call('XADD', 'crucible:ctl:' .. m[2], 'NOMKSTREAM', '*', 'm', ARGV[4]) end
return 1
"""
)

# Counts the readers of a labelled stream. It begins with one that is away. Arguments: id, changes of attached and away
# readers, a name of this change. Answer: both together, 0 for a stream without a label.
COUNT_READERS: Final = Script(
    """
local id, meta = ARGV[1], key(ARGV[1], 'meta')
local m = call('HMGET', meta, 'label', 'attached', 'away', 'forgotten')
if not m[1] or m[1] == '' or m[4] then return 0 end
local attached, away = tonumber(m[2] or '0'), tonumber(m[3] or '1')
if ARGV[2] == '0' and ARGV[3] == '0' then return attached + away end
if call('SET', key(id, 'change') .. ':' .. ARGV[4], '1', 'NX', 'PX', 60000) then
  attached = attached + ARGV[2]
  away = math.max(0, away + ARGV[3])
  call('HSET', meta, 'attached', attached, 'away', away)
end
return attached + away
"""
)

# Arguments: owner. Answer: for each stream, newest first: id, head, state, lease, schema, facts, its last record.
LIST: Final = Script(
    """
local out, own = {}, 'crucible:own:' .. ARGV[1]
for _, id in ipairs(call('ZREVRANGE', own, 0, -1)) do
  local m = call('HMGET', key(id, 'meta'), 'head', 'state', 'schema', 'facts')
  if m[1] then
    local last = call('XREVRANGE', key(id, 'log'), '+', '-', 'COUNT', 1)
    out[#out + 1] = {id, tonumber(m[1]), m[2], call('GET', key(id, 'lease')), m[3], m[4], last[1] and last[1][2][2]}
  else
    call('ZREM', own, id)
  end
end
return out
"""
)

ALL: Final = (APPEND, HEARTBEAT, LOOK, CHECK, SEAL, CLAIM, RELEASE, START, RESERVE, DROP, FORGET, COUNT_READERS, LIST)
