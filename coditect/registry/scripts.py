"""The registry's Lua scripts for Redis: each is one atomic step and one round trip.

::

    <prefix>leases         sorted set  agent id by the end of its lease, ms of Redis' own clock
    <prefix>registrations  hash        agent id: registration as JSON
    <prefix>loads          hash        agent id: load as JSON
    <prefix>terms          hash        agent id: JSON list of its index terms, to remove them again
    <prefix>index          sorted set  every score 0, members "<term> NUL <agent id>", found by range
    <prefix>turns          hash        name: the last turn given out
    <prefix>start:<task>   string      id of the agent that started this redelivered task; lives a day at most
    <prefix>returns:<task> string      how often agents handed this task back; lives an hour at most

A term is ``a`` (every agent has it), ``c NUL <capability>`` or ``t NUL <tag>``. One index for all terms keeps every key
of a script declared, however many capabilities there are.

The next script that runs removes a lapsed agent. Each key (but `turns`, marks and returns) also lives no longer than
the longest lease written to it, so a fleet that is gone leaves nothing behind. The scripts may write when the memory is
full (`allow-oom`): the fleet bounds what they hold, and agents must not lapse because another program filled Redis.
Start marks are bounded by nothing but the redelivered tasks, so no mark is written then.
"""

from __future__ import annotations

KEYS = ("leases", "registrations", "loads", "terms", "index")
"""The keys that each script declares, in order."""

TURNS_KEY = "turns"
START_PREFIX = "start:"
RETURNS_PREFIX = "returns:"
SEPARATOR = "\0"

ANY_AGENT = "a"
"""The index term that every agent has."""


def capability_term(name: str) -> str:
    """Return the index term of a capability."""
    return f"c{SEPARATOR}{name}"


def tag_term(tag: str) -> str:
    """Return the index term of a tag."""
    return f"t{SEPARATOR}{tag}"


_SHARED = r"""#!lua flags=allow-oom
local LEASES, REGISTRATIONS, LOADS, TERMS, INDEX = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function forget(id)
  local terms = redis.call('HGET', TERMS, id)
  for _, term in ipairs(terms and cjson.decode(terms) or {}) do
    redis.call('ZREM', INDEX, term .. '\0' .. id)
  end
  redis.call('ZREM', LEASES, id)
  redis.call('HDEL', REGISTRATIONS, id)
  redis.call('HDEL', LOADS, id)
  redis.call('HDEL', TERMS, id)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now)) do
  forget(id)
end

local function write(id, load, lease)
  redis.call('HSET', LOADS, id, load)
  redis.call('ZADD', LEASES, now + lease, id)
  for _, key in ipairs(KEYS) do
    if redis.call('PTTL', key) < tonumber(lease) then redis.call('PEXPIRE', key, lease) end
  end
end

local function describe(id, found)
  local lease = redis.call('ZSCORE', LEASES, id)
  local registration = redis.call('HGET', REGISTRATIONS, id)
  local load = redis.call('HGET', LOADS, id)
  if lease and registration and load then
    table.insert(found, {registration, load, tonumber(lease) - now})
  end
end
"""

REGISTER = (
    _SHARED
    + r"""
local id, registration, load, terms, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
forget(id)
redis.call('HSET', REGISTRATIONS, id, registration)
redis.call('HSET', TERMS, id, terms)
for _, term in ipairs(cjson.decode(terms)) do
  redis.call('ZADD', INDEX, 0, term .. '\0' .. id)
end
write(id, load, lease)
return 1
"""
)
"""ARGV: agent id, registration, load, terms, lease in ms."""

RENEW = (
    _SHARED
    + r"""
local id, load, lease = ARGV[1], ARGV[2], ARGV[3]
local whole = redis.call('ZSCORE', LEASES, id) and redis.call('HEXISTS', REGISTRATIONS, id) == 1
  and redis.call('HEXISTS', TERMS, id) == 1 and redis.call('ZSCORE', INDEX, 'a\0' .. id)
if not whole then return 0 end
write(id, load, lease)
return 1
"""
)
"""ARGV: agent id, load, lease in ms. Returns 0 when a part of the agent is missing (lapsed, wiped, evicted)."""

DEREGISTER = _SHARED + "forget(ARGV[1])\nreturn 1\n"
"""ARGV: agent id."""

FIND = (
    _SHARED
    + r"""
local found = {}
for _, member in ipairs(redis.call('ZRANGEBYLEX', INDEX, '[' .. ARGV[1] .. '\0', '(' .. ARGV[1] .. '\1')) do
  describe(string.sub(member, #ARGV[1] + 2), found)
end
return found
"""
)
"""ARGV: term. Returns a list of (registration, load, ms left of the lease)."""

GET = _SHARED + "local found = {}\ndescribe(ARGV[1], found)\nreturn found\n"
"""ARGV: agent id. Returns a list like FIND's."""

LEASES = _SHARED + "return {now, redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES')}\n"
"""No ARGV. Returns the time, then agent id, end of its lease, agent id..."""

CAPABILITIES = (
    _SHARED
    + r"""
local names, last = {}, nil
for _, member in ipairs(redis.call('ZRANGEBYLEX', INDEX, '[c\0', '(c\1')) do
  local name = string.match(member, '^c%z(.-)%z')
  if name ~= last then
    table.insert(names, name)
    last = name
  end
end
return names
"""
)
"""No ARGV. Returns the names of capabilities, each once."""

MARK_START = r"""#!lua
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= ARGV[3] then return holder end
if ARGV[4] ~= '' and tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[4]) then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
"""KEYS: the mark, the count of hand-backs. ARGV: agent id, life in ms, whose mark may be replaced, count of
deliveries. Returns the agent whose mark stays, or nothing.
"""

CLEAR_START = r"""#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('DEL', KEYS[2])
return 1
"""
"""KEYS: as for MARK_START. ARGV: agent id."""

HAND_BACK = r"""#!lua
for at = 1, #KEYS, 2 do
  if redis.call('GET', KEYS[at]) == ARGV[1] then redis.call('DEL', KEYS[at]) end
  redis.call('INCR', KEYS[at + 1])
  redis.call('PEXPIRE', KEYS[at + 1], ARGV[2])
end
return 1
"""
"""KEYS: as for MARK_START, for each task. ARGV: agent id, life in ms."""
