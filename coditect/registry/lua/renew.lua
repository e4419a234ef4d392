-- ARGV: agent id, load, lease in ms; returns 0 when a part of the agent is missing (lapsed, wiped, evicted)
local id, load, lease = ARGV[1], ARGV[2], ARGV[3]
local whole = redis.call('ZSCORE', LEASES, id) and redis.call('HEXISTS', REGISTRATIONS, id) == 1
  and redis.call('HEXISTS', TERMS, id) == 1 and redis.call('ZSCORE', INDEX, 'a\0' .. id)
if not whole then return 0 end
write(id, load, lease)
return 1
