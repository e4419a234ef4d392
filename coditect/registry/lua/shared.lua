#!lua flags=allow-oom
local LEASES, REGISTRATIONS, LOADS, TERMS, INDEX, GONE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local GONE_MS, MOST_GONE = 24 * 3600 * 1000, 1000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function unlist(id)
  local terms = redis.call('HGET', TERMS, id)
  for _, term in ipairs(terms and cjson.decode(terms) or {}) do
    redis.call('ZREM', INDEX, term .. '\0' .. id)
  end
  redis.call('ZREM', LEASES, id)
  redis.call('HDEL', TERMS, id)
end

local function forget(id)
  redis.call('ZREM', GONE, id)
  redis.call('HDEL', REGISTRATIONS, id)
  redis.call('HDEL', LOADS, id)
end

local function stamp(load, field, value)
  return string.sub(load, 1, -2) .. ',"' .. field .. '":' .. value .. '}'
end

local function leave(id, reason, at)
  unlist(id)
  local load = redis.call('HGET', LOADS, id)
  if not load then return forget(id) end
  redis.call('HSET', LOADS, id, stamp(load, 'gone', '"' .. reason .. '"'))
  redis.call('ZADD', GONE, at, id)
  redis.call('PEXPIRE', GONE, GONE_MS)
end

local lapsed = redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'WITHSCORES')
for at = 1, #lapsed, 2 do
  leave(lapsed[at], 'its heartbeats stopped', lapsed[at + 1])
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', GONE, '-inf', now - GONE_MS)) do forget(id) end
for _, id in ipairs(redis.call('ZRANGE', GONE, 0, -1 - MOST_GONE)) do forget(id) end

local function write(id, load, lease)
  redis.call('HSET', LOADS, id, stamp(load, 'beat_ms', now))
  redis.call('ZADD', LEASES, now + lease, id)
  local life = lease + GONE_MS
  for _, key in ipairs(KEYS) do
    if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, life) end
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
