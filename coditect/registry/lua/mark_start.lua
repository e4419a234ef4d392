#!lua
-- KEYS: the mark, the count of hand-backs. ARGV: agent id, life in ms, whose mark may be replaced, count of deliveries
-- returns the agent whose mark stays, or nothing
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= ARGV[3] then return holder end
if ARGV[4] ~= '' and tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[4]) then return false end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
