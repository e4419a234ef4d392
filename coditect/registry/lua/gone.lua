-- ARGV: agent id, or nothing for all; the most bytes of all registrations
-- returns (registration, load, 0) of each agent that went away, the latest first
local found, bytes = {}, 0
for _, id in ipairs(ARGV[1] == '' and redis.call('ZREVRANGE', GONE, 0, -1) or {ARGV[1]}) do
  local registration, load = redis.call('HGET', REGISTRATIONS, id), redis.call('HGET', LOADS, id)
  if redis.call('ZSCORE', GONE, id) and registration and load and not redis.call('ZSCORE', LEASES, id) then
    bytes = bytes + #registration
    if bytes > tonumber(ARGV[2]) then break end
    table.insert(found, {registration, load, 0})
  end
end
return found
