#!lua flags=allow-oom
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
