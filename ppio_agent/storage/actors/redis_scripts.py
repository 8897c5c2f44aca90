"""What runs inside a Redis server for the actors there: two families of scripts.

A script of the first family works on the keys of one actor, which share a hash tag, so
that each is one atomic step also in a cluster. What spans actors (which requests are
pending, what is due when) is kept in indexes under another tag. An index only hints: each
script tells what it changed there as triples (index, item, score or nothing), which the
client gives to `APPLY` next. Should it die in between, the sweep mends the indexes.

Times travel as text: `cjson` would round them.
"""

from __future__ import annotations

from .ends import failure

__all__ = ["ACTOR_KEYS", "ACTOR_SCRIPTS", "INDEX_KEYS", "INDEX_SCRIPTS"]

ACTOR_KEYS = (
    "actor",  # hash: token, worker, etag, seq, owner, last_turn, expires
    "state",  # hash: JSON by key
    "names",  # sorted set of the state's keys, all of score 0: in their order
    "queue",  # sorted set of pending ids, by acceptance
    "requests",  # hash: "<id>" a head, "<id> params", "<id> data"
    "steps",  # hash: "<id> <position>" a step
    "outbox",  # hash: "<number>" what goes to others, "<number> tries"
    "reminders",  # hash by name
    "dead",  # hash of dead letters on their way to the others
)

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
    "workers",  # until when they have their leases
    "waits",  # hash: which actor waits for which
    "dead",  # ids of dead letters, all of score 0: in their order
    "letters",  # hash of dead letters
)

_CODES = (
    "cancelled", "superseded", "dropped", "crashed", "invocation_timeout",
)  # fmt: skip
_DATA = ", ".join(f"{code} = [==[{failure(code).decode()}]==]" for code in _CODES)

_PRELUDE = f"""
local ACTOR, STATE, NAMES, QUEUE, REQUESTS, STEPS, OUTBOX, REMINDERS, DEAD = unpack(KEYS)
local FAILURE = {{{_DATA}}}
local KEPT_STEPS, KEPT_STEP_BYTES = 1024, 1048576
"""

_HELPERS = """
local call = redis.call
local args = cjson.decode(ARGV[1])  -- where it names a blob, it gives its place in ARGV
local clock = call('TIME')
local now = tonumber(args.now) or clock[1] + clock[2] / 1000000
local hints = {}

local function instant(seconds) return string.format('%.6f', seconds) end

local function hint(index, item, score)
  for _, word in ipairs({index, item, score or ''}) do hints[#hints + 1] = word end
end

local function held()
  local lease = call('HMGET', ACTOR, 'worker', 'token')
  return lease[1] == args.worker and lease[2] == args.token
end

local function load(id)
  local text = id and call('HGET', REQUESTS, id)
  return text and cjson.decode(text)
end

local function save(r) call('HSET', REQUESTS, r.id, cjson.encode(r)) end

local function told(r)
  local texts = call('HMGET', REQUESTS, r.id, r.id .. ' params', r.id .. ' data')
  return {texts[1], texts[2] or '', texts[3] or ''}
end

local function add(r, params)
  call('ZADD', QUEUE, call('HINCRBY', ACTOR, 'seq', 1), r.id)
  call('HSET', REQUESTS, r.id .. ' params', params)
  save(r)
  hint('pending', r.id, r.created)
  if r.deadline ~= '' then hint('deadlines', r.id, r.deadline) end
end

local function bury(r, reason, data)
  local number = call('HINCRBY', ACTOR, 'seq', 1)
  local id = string.format('%016.0f-%09.0f-%s', now * 1000000, number,
    string.sub(redis.sha1hex(ACTOR), 1, 12))
  local letter = {id = id, reason = reason, at = instant(now), request = r, data = data}
  local params = call('HGET', REQUESTS, r.id .. ' params') or ''
  call('HSET', DEAD, id, cjson.encode(letter) .. '\\n' .. params)
  hint('dying', id, letter.at)
end

local function finish(r, status, data, reason)
  r.status, r.finished, r.size = status, instant(now), #data + r.bytes
  if reason then bury(r, reason, data) end
  call('ZREM', QUEUE, r.id)
  call('HDEL', REQUESTS, r.id .. ' params')
  call('HSET', REQUESTS, r.id .. ' data', data)
  save(r)
  hint('pending', r.id)
  if r.deadline ~= '' then hint('deadlines', r.id) end
  if r.cancel ~= '' then hint('cancels', r.id) end
  hint('ended', r.id .. ' ' .. r.size, r.finished)
  return told(r)
end

-- The first counts, but for the one that would keep something.
local function note(r, how)
  if r.cancel ~= '' and r.cancel ~= 'interrupt' then return end
  r.cancel = how
  save(r)
  hint('cancels', r.id, instant(now))
end

local function code_of(cancel)
  return cancel == 'cancel' and 'cancelled' or 'superseded'
end

-- Mirrors admission.end_unbegun.
local function unbegun(r, crash_attempts)
  if r.deadline ~= '' and tonumber(r.deadline) <= now then
    return 'expired', 'invocation_timeout'
  elseif r.cancel ~= '' then
    return 'cancelled', code_of(r.cancel)
  elseif r.attempt >= crash_attempts then
    return 'failed', 'crashed'
  end
end

local function begin(crash_attempts)
  local ended = {}
  while true do
    local r = load(call('ZRANGE', QUEUE, 0, 0)[1])
    if not r then return {ended, {}} end
    local status, code = unbegun(r, crash_attempts)
    if not status then
      r.attempt, r.started = r.attempt + 1, instant(now)
      save(r)
      return {ended, told(r)}
    end
    ended[#ended + 1] = finish(r, status, FAILURE[code], code == 'crashed' and code)
  end
end

local function etag() return call('HGET', ACTOR, 'etag') or '0' end

local function change(ops)
  if #ops == 0 then return end
  for _, op in ipairs(ops) do
    local key, value = op[1], op[2]
    if value then
      call('HSET', STATE, key, ARGV[value])
      call('ZADD', NAMES, 0, key)
    else
      call('HDEL', STATE, key)
      call('ZREM', NAMES, key)
    end
  end
  call('HSETNX', ACTOR, 'etag', string.format('%.0f', now * 1000))
  call('HINCRBY', ACTOR, 'etag', 1)
end

local function drop_steps(r, last)
  for n = r.first, last do call('HDEL', STEPS, r.id .. ' ' .. n) end
  r.first = last + 1
end

local function log(r, items)
  for _, item in ipairs(items) do
    local n, data = item[1], ARGV[item[2]]
    if n > r.position then
      if r.position < r.first then r.first = n end  -- there are none yet
      call('HSET', STEPS, r.id .. ' ' .. n, data)
      r.position, r.bytes = n, r.bytes + #data
    end
  end
  while r.position - r.first >= KEPT_STEPS or r.bytes > KEPT_STEP_BYTES do
    r.bytes = r.bytes - call('HSTRLEN', STEPS, r.id .. ' ' .. r.first)
    drop_steps(r, r.first)
  end
  if #items > 0 then hint('progress', r.id, '0') end
end

local function has_nothing()
  return call('EXISTS', STATE, REQUESTS, OUTBOX, REMINDERS, DEAD) == 0
end

local function is_owned() return call('HEXISTS', ACTOR, 'owner') == 1 end

-- Tokens and etags begin with the time: they rise also if they were forgotten before.
local function forget(owned)
  local leased = call('HEXISTS', ACTOR, 'worker') == 1
  if leased or not has_nothing() or is_owned() and not owned then return false end
  return call('DEL', ACTOR) == 1
end
"""

_ACTOR_BODIES = {
    "read": """
local keys, values = args.keys, {}
if not keys then
  keys = call('ZRANGEBYLEX', NAMES, ARGV[2], ARGV[3], 'LIMIT', 0, args.limit)
end
for _, key in ipairs(keys) do
  values[#values + 1] = {key, call('HGET', STATE, key)}
end
return {hints, etag(), values}
""",
    "write": """
if args.etag and args.etag ~= etag() then return {hints, 'conflict', etag()} end
change(args.state)
return {hints, 'written', etag()}
""",
    # Mirrors admission.admit. The turn of the first may have begun; the others wait.
    "accept": """
local known = load(args.request.id)
if known then
  local digest = args.request.digest
  local other = digest ~= '' and known.digest ~= '' and digest ~= known.digest
  return {hints, other and 'conflict' or 'duplicate', told(known), {}, ''}
end
local count = call('ZCARD', QUEUE)
local first = load(call('ZRANGE', QUEUE, 0, 0)[1])
local running = first and first.attempt > 0 and 1 or 0
local leave = 0
if first and args.on_busy == 'reject' then
  return {hints, 'busy', told(first), {}, ''}
elseif args.on_busy == 'interrupt' or args.on_busy == 'rollback' then
  leave = count - running
elseif args.drop_oldest and count > running and count >= args.mailbox then
  leave = 1
end
if count - leave >= args.mailbox then return {hints, 'full', {}, {}, ''} end
if args.pending - leave >= args.most then return {hints, 'overloaded', {}, {}, ''} end

local ended, told_to_end = {}, ''
local supersede = args.on_busy == 'interrupt' or args.on_busy == 'rollback'
for _, id in ipairs(call('ZRANGE', QUEUE, running, running + leave - 1)) do
  local r = load(id)
  if supersede then
    ended[#ended + 1] = finish(r, 'cancelled', FAILURE.superseded)
  else
    ended[#ended + 1] = finish(r, 'rejected', FAILURE.dropped, 'dropped')
  end
end
if supersede and running == 1 then
  note(first, args.on_busy)
  told_to_end = first.id
end
add(args.request, ARGV[2])
return {hints, 'new', {}, ended, told_to_end}
""",
    "get": """
local r = load(args.id)
return {hints, r and told(r) or {}}
""",
    "cancel": """
local r = load(args.id)
if not r then return {hints, 'not_found'} end
if r.status ~= 'pending' then return {hints, 'terminal'} end
if r.attempt > 0 then
  note(r, args.how)
  return {hints, 'requested'}
end
finish(r, 'cancelled', FAILURE.cancelled)
return {hints, 'cancelled'}
""",
    "steps": """
local r, steps = load(args.id), {}
if r then
  local from = math.max(r.first, args.after + 1)
  for n = from, math.min(r.position, from + args.limit - 1) do
    local data = call('HGET', STEPS, r.id .. ' ' .. n)
    if data then steps[#steps + 1] = {n, data} end
  end
end
return {hints, steps}
""",
    "append": """
if not held() then return {hints, 'lost'} end
local r = load(args.id)
if r and r.status == 'pending' then
  log(r, args.progress)
  save(r)
end
return {hints, 'kept'}
""",
    "claim": """
local lease = call('HMGET', ACTOR, 'worker', 'token')
local holder, token = lease[1], lease[2]
if holder and holder ~= args.worker and token ~= args.dead then
  return {hints, 'held', holder, token}
end
call('HSETNX', ACTOR, 'token', string.format('%.0f', now * 1000))
call('HSET', ACTOR, 'worker', args.worker)
return {hints, 'claimed', holder or '', call('HINCRBY', ACTOR, 'token', 1)}
""",
    "release": """
if held() then
  call('HDEL', ACTOR, 'worker')
  forget()
end
return {hints}
""",
    "take": """
if not held() then return {hints, 'lost'} end
return {hints, 'taken', begin(args.crash_attempts)}
""",
    "commit": """
if not held() then return {hints, 'lost'} end
local r = load(args.id) or args.request
local outcome = 'committed'
if not r or r.status ~= 'pending' then
  outcome = 'ended'
elseif r.cancel ~= '' then
  outcome = 'cancelled'
  if args.keep and r.cancel == 'interrupt' and (args.etag or etag()) == etag() then
    change(args.state)
  end
  call('HSET', ACTOR, 'last_turn', instant(now))
  finish(r, 'cancelled', FAILURE[code_of(r.cancel)])
elseif args.etag and args.etag ~= etag() then
  return {hints, 'conflict', etag(), {}, {}}
else
  change(args.state)
  log(r, args.progress)
  for _, out in ipairs(args.outbox) do
    local number = string.format('%012.0f', call('HINCRBY', ACTOR, 'seq', 1))
    call('HSET', OUTBOX, number, ARGV[out[2]])
    hint('outbox', number, math.max(tonumber(out[1]), now))
  end
  for _, reminder in ipairs(args.reminders) do
    local name, due, text = reminder[1], reminder[2], reminder[3]
    if due then call('HSET', REMINDERS, name, ARGV[text])
    else call('HDEL', REMINDERS, name) end
    hint('reminders', name, due)
  end
  call('HSET', ACTOR, 'last_turn', instant(now))
  if args.state_ttl then
    local expires = instant(now + args.state_ttl)
    call('HSET', ACTOR, 'expires', expires)
    hint('expiries', '', expires)
  elseif call('HDEL', ACTOR, 'expires') == 1 then
    hint('expiries', '')
  end
  finish(r, args.status, ARGV[2], args.dead)
end
return {hints, outcome, etag(), r and outcome ~= 'committed' and told(r) or {},
  args.take and begin(args.crash_attempts) or {}}
""",
    "inspect": """
local facts = call('HMGET', ACTOR, 'etag', 'worker', 'token', 'owner', 'last_turn')
local first = load(call('ZRANGE', QUEUE, 0, 0)[1])
local known = is_owned() or not has_nothing() or facts[2]
return {hints, known and 1 or 0, facts[1] or '0', facts[2], facts[3] or '0',
  facts[4], facts[5] or '', call('ZCARD', QUEUE),
  first and first.attempt > 0 and first.id or '', call('HLEN', REMINDERS)}
""",
    "own": """
if call('HSETNX', ACTOR, 'owner', args.owner) == 1 then
  hint('owners', '', instant(now))
end
return {hints, call('HGET', ACTOR, 'owner')}
""",
    "delete": """
if not held() then return {hints, 'lost'} end
local had = is_owned() or not has_nothing()
for _, id in ipairs(call('ZRANGE', QUEUE, 0, -1)) do
  finish(load(id), 'cancelled', FAILURE.cancelled)
end
for _, number in ipairs(call('HKEYS', OUTBOX)) do hint('outbox', number) end
for _, name in ipairs(call('HKEYS', REMINDERS)) do hint('reminders', name) end
hint('expiries', '')
hint('owners', '')
for _, id in ipairs(call('HKEYS', DEAD)) do hint('dying', id) end
call('DEL', STATE, NAMES, QUEUE, REQUESTS, STEPS, OUTBOX, REMINDERS, DEAD)
call('HDEL', ACTOR, 'etag', 'owner', 'last_turn', 'expires')
return {hints, 'deleted', had and 1 or 0}
""",
    # What follows is the sweep's: it was told by an index, which may be wrong.
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
  return {hints, 0}
elseif call('EXISTS', QUEUE) == 1 then
  hint('expiries', '', instant(now + 60))  -- a turn of it will say anew
  return {hints, 0}
end
hint('expiries', '')
call('HDEL', ACTOR, 'expires')
if not expires or call('DEL', STATE, NAMES) == 0 then return {hints, 0} end
call('HINCRBY', ACTOR, 'etag', 1)
forget()
return {hints, 1}
""",
    "disown": """
local owned = is_owned()
local gone = owned and forget(true)
hint('owners', '', owned and not gone and instant(now) or nil)
return {hints, gone and 1 or 0}
""",
    # What the indexes should say of an actor.
    "survey": """
local worker = call('HGET', ACTOR, 'worker')
if worker then
  local lives = false
  for _, other in ipairs(args.workers) do lives = lives or other == worker end
  if not lives then call('HDEL', ACTOR, 'worker') end
end
if forget() then return {hints} end
if is_owned() then hint('owners', '', instant(now)) end
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

ACTOR_SCRIPTS = {
    name: _PRELUDE + _HELPERS + body for name, body in _ACTOR_BODIES.items()
}
"""Their keys are those of `ACTOR_KEYS`; ARGV[1] is JSON; they return hints first."""

INDEX_SCRIPTS = {name: _INDEX_PRELUDE + body for name, body in _INDEX_BODIES.items()}
"""Their keys are those of `INDEX_KEYS`."""
