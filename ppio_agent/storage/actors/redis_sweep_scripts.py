"""What runs inside a Redis server for all actors: their indexes, and what sweeps do.

An index tells a sweep which actors to look at; it may be wrong, and the actor's own
script is right. All indexes share one hash tag.
"""

from __future__ import annotations

from .redis_scripts import actor_scripts

__all__ = ["INDEX_KEYS", "INDEX_SCRIPTS", "SWEEP_SCRIPTS"]

INDEX_KEYS = (
    "pending",  # by acceptance, like all below sorted sets of "<actor>\n<item>"
    "deadlines",  # of pending requests
    "cancels",  # pending requests whose turn is to end
    "outbox",  # when what is in an outbox leaves
    "reminders",  # when they are due
    "expiries",  # when states are deleted
    "owners",  # which actors have one, by the latest look
    "dying",  # dead letters that are still with their actor
    "ended",  # "<actor>\n<id> <bytes>" by when it ended
    "payloads",  # of those the ones that have their result
    "bytes",  # how many bytes these results have
    "leases",  # of all workers, as items, in no order
    "workers",  # until when they have their leases
    "waits",  # hash: which actor waits for which
    "dead",  # ids of dead letters, all of score 0: in their order
    "letters",  # hash of dead letters
)

_SWEEP_BODIES = {
    "peek": """
local found = {}
for _, id in ipairs(args.ids) do
  local r = load(id)
  if r and r.status == 'pending' then found[#found + 1] = {id, r.cancel}
  else
    hint('pending', id)
    hint('cancels', id)
  end
end
return {hints, call('HGET', ACTOR, 'worker') or '', found}
""",
    "expire": """
local ended = {}
for _, id in ipairs(args.ids) do
  local r = load(id)
  if not r or r.status ~= 'pending' then hint('deadlines', id)
  else ended[#ended + 1] = finish(r, 'expired', FAILURE.invocation_timeout) end
end
return {hints, ended}
""",
    "fire": """
local before = load(args.before)
if call('HGET', REMINDERS, args.name) ~= ARGV[2] then
  return {hints, 0}
elseif before and before.status == 'pending' then
  hint('reminders', args.name, instant(now + 1))
  return {hints, 0}
end
if args.due then call('HSET', REMINDERS, args.name, ARGV[4])
else call('HDEL', REMINDERS, args.name) end
hint('reminders', args.name, args.due)
if load(args.request.id) then return {hints, 0} end
add(args.request, ARGV[3])
return {hints, 1}
""",
    "sent": """
for _, number in ipairs(args.numbers) do
  call('HDEL', OUTBOX, number, number .. ' tries')
  hint('outbox', number)
end
forget()
return {hints}
""",
    "evict": """
for _, id in ipairs(args.ids) do
  local r = load(id)
  if r and r.status ~= 'pending' and r.evicted == 0 then
    r.evicted = 1
    drop_steps(r, r.position)
    call('HDEL', REQUESTS, id .. ' data')
    save(r)
  end
end
return {hints}
""",
    "drop": """
for _, id in ipairs(args.ids) do
  local r = load(id)
  if r and r.status ~= 'pending' then
    drop_steps(r, r.position)
    call('HDEL', REQUESTS, id, id .. ' data')
  end
end
forget()
return {hints}
""",
    "wither": """
local expires = call('HGET', ACTOR, 'expires')
if expires and tonumber(expires) > now then
  hint('expiries', '', expires)
  return {hints}
elseif call('EXISTS', QUEUE) == 1 then
  hint('expiries', '', instant(now + 60))  -- a turn of it will say anew
  return {hints}
end
hint('expiries', '')
call('HDEL', ACTOR, 'expires')
if expires and call('DEL', STATE, NAMES) > 0 then
  call('HINCRBY', ACTOR, 'etag', 1)
  forget()
end
return {hints}
""",
    "disown": """
hint('owners', '')
if is_owned() and not forget(true) then see_owner() end
return {hints}
""",
    # What the indexes should say of an actor.
    "survey": """
local worker = call('HGET', ACTOR, 'worker')
if worker then
  hint('leases', worker, '0')
  for _, gone in ipairs(args.gone) do
    if worker == gone then
      call('HDEL', ACTOR, 'worker')
      hint('leases', worker)
    end
  end
end
if forget() then return {hints} end
if is_owned() then hint('owners', '', call('HGET', ACTOR, 'owner_seen')) end
for _, id in ipairs(call('HKEYS', REQUESTS)) do
  local r = not string.find(id, ' ', 1, true) and load(id)
  if r and r.status ~= 'pending' then hint('ended', id .. ' ' .. r.size, r.finished)
  elseif r then
    hint('pending', id, r.created)
    if r.deadline ~= '' then hint('deadlines', id, r.deadline) end
    if r.cancel ~= '' then hint('cancels', id, instant(now)) end
  end
end
local function first_line(text) return cjson.decode(string.match(text, '^[^\\n]*')) end
local texts = call('HGETALL', OUTBOX)
for i = 1, #texts, 2 do
  if not string.find(texts[i], ' ', 1, true) then
    hint('outbox', texts[i], first_line(texts[i + 1]).due)
  end
end
texts = call('HGETALL', REMINDERS)
for i = 1, #texts, 2 do hint('reminders', texts[i], first_line(texts[i + 1]).due) end
for _, id in ipairs(call('HKEYS', DEAD)) do hint('dying', id, instant(now)) end
local expires = call('HGET', ACTOR, 'expires')
if expires then hint('expiries', '', expires) end
return {hints}
""",
}

_NAMES = ", ".join(f"'{name}'" for name in INDEX_KEYS)
_INDEX_PRELUDE = f"""
local call, KEY = redis.call, {{}}
for i, name in ipairs({{{_NAMES}}}) do KEY[name] = KEYS[i] end
local clock = call('TIME')
local now = clock[1] + clock[2] / 1000000

local function lighten(member)
  if call('ZREM', KEY.payloads, member) == 1 then
    call('DECRBY', KEY.bytes, string.match(member, '%d+$'))
  end
end
"""

_INDEX_BODIES = {
    # Triples: index, member, score; no score takes it out.
    "apply": """
local TOLD = {pending = 'ready', ended = 'ended', cancels = 'cancel', progress = 'progress'}
for i = 1, #ARGV, 3 do
  local index, member, score = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local changed = 0
  if score == '' then call('ZREM', KEY[index], member)
  elseif index == 'progress' then changed = 1
  else changed = call('ZADD', KEY[index], 'CH', score, member) end
  if changed == 1 and index == 'ended' then
    call('ZADD', KEY.payloads, score, member)
    call('INCRBY', KEY.bytes, string.match(member, '%d+$'))
    member = string.match(member, '^(.*) %d+$')
  end
  if changed == 1 and TOLD[index] then
    call('PUBLISH', KEY.pending, TOLD[index] .. '\\n' .. member)
  end
end
return call('ZCARD', KEY.pending)
""",
    "beat": """
local until_then = call('ZSCORE', KEY.workers, ARGV[1])
call('ZADD', KEY.workers, string.format('%.6f', now + ARGV[2]), ARGV[1])
return {(not until_then or tonumber(until_then) > now) and 1 or 0, clock[1], clock[2]}
""",
    # Pairs: who waits, for whom.
    "wait": """
for i = 1, #ARGV, 2 do call('HSET', KEY.waits, ARGV[i], ARGV[i + 1]) end
local way, seen = {}, {}
local asker = ARGV[#ARGV - 1]
local here = asker
while here and not seen[here] do
  seen[here] = true
  way[#way + 1] = here
  here = call('HGET', KEY.waits, here)
end
return here == asker and way or {}
""",
    # Pairs: id, letter.
    "bury": """
for i = 1, #ARGV, 2 do
  if call('HSETNX', KEY.letters, ARGV[i], ARGV[i + 1]) == 1 then
    call('ZADD', KEY.dead, 0, ARGV[i])
  end
end
""",
    "letters": """
local ids = call('ZRANGEBYLEX', KEY.dead, ARGV[1], '+', 'LIMIT', 0, ARGV[2])
local letters = {}
for _, id in ipairs(ids) do letters[#letters + 1] = call('HGET', KEY.letters, id) end
return letters
""",
    "discard": """
local gone = 0
for _, id in ipairs(ARGV) do
  call('HDEL', KEY.letters, id)
  gone = gone + call('ZREM', KEY.dead, id)
end
return gone
""",
    # Ids end with the digest of their actor.
    "discard_of": """
local gone = 0
for _, id in ipairs(call('ZRANGE', KEY.dead, 0, -1)) do
  if string.sub(id, -12) == ARGV[1] then
    call('HDEL', KEY.letters, id)
    gone = gone + call('ZREM', KEY.dead, id)
  end
end
return gone
""",
    "evicted": """
for _, member in ipairs(ARGV) do lighten(member) end
""",
    "dropped": """
for _, member in ipairs(ARGV) do
  lighten(member)
  call('ZREM', KEY.ended, member)
end
""",
}

SWEEP_SCRIPTS = actor_scripts(_SWEEP_BODIES)

INDEX_SCRIPTS = {name: _INDEX_PRELUDE + body for name, body in _INDEX_BODIES.items()}
"""Their keys are those of `INDEX_KEYS`."""
