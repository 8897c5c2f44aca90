"""What runs inside a Redis server for one actor, in one atomic step.

All keys of an actor share a hash tag, so that this holds in a cluster, too. What spans
actors (which requests are pending, what is due when) is kept in indexes under another
tag. An index only hints: each script tells what it changed there as triples (index, item,
score or nothing), which the client gives to the script `apply` next. Should it die in
between, the sweep mends the indexes; see `redis_sweep_scripts`.

Times travel as text: `cjson` would round them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .ends import failure

__all__ = ["ACTOR_KEYS", "TURN_SCRIPTS", "actor_scripts"]

ACTOR_KEYS = (
    "actor",  # hash: token, worker, etag, seq, owner, owner_seen, last_turn, expires
    "state",  # hash: JSON by key
    "names",  # sorted set of the state's keys, all of score 0: in their order
    "queue",  # sorted set of pending ids, by acceptance
    "requests",  # hash: "<id>" a head, "<id> params", "<id> data"
    "steps",  # hash: "<id> <position>" a step
    "outbox",  # hash: "<number>" what goes to others, "<number> tries"
    "reminders",  # hash by name
    "dead",  # hash of dead letters on their way to the others
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

-- Without a token: whether the worker has any lease.
local function held()
  local lease = call('HMGET', ACTOR, 'worker', 'token')
  return lease[1] == args.worker and lease[2] == (args.token or lease[2])
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

-- Who asks again has not heard the answer: of one turn that is the same.
local function begin(crash_attempts)
  local ended, token = {}, call('HGET', ACTOR, 'token')
  while true do
    local r = load(call('ZRANGE', QUEUE, 0, 0)[1])
    if not r then return {ended, {}} end
    local turns = r.attempt > 0 and r.begun == token and 0 or 1
    local status, code = unbegun(r, crash_attempts + (r.spared or 0) + 1 - turns)
    if not status then
      r.attempt, r.started, r.begun = r.attempt + turns, instant(now), token
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
  call('HSETNX', ACTOR, 'etag', string.format('%.0f', now * 1000000))
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

local function see_owner()
  call('HSET', ACTOR, 'owner_seen', instant(now))
  hint('owners', '', instant(now))
end

local function is_owned() return call('HEXISTS', ACTOR, 'owner') == 1 end

-- Tokens and etags begin with the time: they rise also if they were forgotten before.
local function forget(owned)
  local leased = call('HEXISTS', ACTOR, 'worker') == 1
  if leased or not has_nothing() or is_owned() and not owned then return false end
  return call('DEL', ACTOR) == 1
end
"""

_BODIES = {
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
local left = leave > 0 and call('ZRANGE', QUEUE, running, running + leave - 1) or {}
for _, id in ipairs(left) do
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
  local n = math.max(r.first, args.after + 1)
  while n <= r.position and #steps < args.limit do  -- some numbers are nobody's
    local data = call('HGET', STEPS, r.id .. ' ' .. n)
    if data then steps[#steps + 1] = {n, data} end
    n = n + 1
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
if holder and holder ~= args.worker then hint('leases', holder) end
hint('leases', args.worker, '0')
call('HSETNX', ACTOR, 'token', string.format('%.0f', now * 1000000))
call('HSET', ACTOR, 'worker', args.worker)
return {hints, 'claimed', holder or '', call('HINCRBY', ACTOR, 'token', 1)}
""",
    "release": """
if held() then
  local r = load(call('ZRANGE', QUEUE, 0, 0)[1])
  if r and not args.dead and r.attempt > 0 and r.begun == call('HGET', ACTOR, 'token') then
    r.spared = (r.spared or 0) + 1
    save(r)
  end
  call('HDEL', ACTOR, 'worker')
  forget()
end
if call('HGET', ACTOR, 'worker') ~= args.worker then hint('leases', args.worker) end
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
    hint('outbox', number, out[1])
  end
  for _, reminder in ipairs(args.reminders) do
    local name, due, text = reminder[1], reminder[2], reminder[3]
    if due then call('HSET', REMINDERS, name, ARGV[text])
    else call('HDEL', REMINDERS, name) end
    hint('reminders', name, due)
  end
  call('HSET', ACTOR, 'last_turn', instant(now))
  if args.state_ttl and call('EXISTS', STATE) == 1 then
    local expires = instant(now + args.state_ttl)
    call('HSET', ACTOR, 'expires', expires)
    hint('expiries', '', expires)
  elseif call('HDEL', ACTOR, 'expires') == 1 then
    hint('expiries', '')
  end
  -- One that was not accepted before has them here alone.
  if args.params then call('HSET', REQUESTS, r.id .. ' params', ARGV[args.params]) end
  finish(r, args.status, ARGV[2], args.dead)
end
return {hints, outcome, etag(), r and outcome ~= 'committed' and told(r) or {},
  args.take and begin(args.crash_attempts) or {}}
""",
    "inspect": """
local facts = call('HMGET', ACTOR, 'etag', 'worker', 'token', 'owner', 'last_turn')
local first = load(call('ZRANGE', QUEUE, 0, 0)[1])
local known = is_owned() or facts[2]
  or call('EXISTS', STATE, REQUESTS, REMINDERS, DEAD) > 0
return {hints, known and 1 or 0, facts[1] or '0', facts[2], facts[3] or '0',
  facts[4], facts[5] or '', call('ZCARD', QUEUE),
  first and first.attempt > 0 and first.id or '', call('HKEYS', REMINDERS)}
""",
    "own": """
if call('HSETNX', ACTOR, 'owner', args.owner) == 1 then see_owner() end
return {hints, call('HGET', ACTOR, 'owner')}
""",
    "delete": """
if not held() then return {hints, 'lost'} end
local had = is_owned() or not has_nothing()
for _, id in ipairs(call('ZRANGE', QUEUE, 0, -1)) do
  finish(load(id), 'cancelled', FAILURE.cancelled)
end
for _, name in ipairs(call('HKEYS', REMINDERS)) do hint('reminders', name) end
hint('expiries', '')
hint('owners', '')
for _, id in ipairs(call('HKEYS', DEAD)) do hint('dying', id) end
hint('leases', args.worker)
call('DEL', STATE, NAMES, QUEUE, REQUESTS, STEPS, REMINDERS, DEAD)
-- What it said before stays said, by the numbers that it has.
call('HDEL', ACTOR, 'worker', 'token', 'etag', 'owner', 'owner_seen',
  'last_turn', 'expires')
forget()
return {hints, 'deleted', had and 1 or 0}
""",
}


def actor_scripts(bodies: Mapping[str, str]) -> dict[str, str]:
    """Return the scripts of bodies that work on one actor.

    Their keys are those of `ACTOR_KEYS`, ARGV[1] is JSON; they return hints first.
    """
    return {name: _PRELUDE + _HELPERS + body for name, body in bodies.items()}


TURN_SCRIPTS = actor_scripts(_BODIES)
