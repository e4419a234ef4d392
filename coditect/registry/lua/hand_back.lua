#!lua
-- KEYS: as for `mark_start`, for each task. ARGV: agent id, life in ms
for at = 1, #KEYS, 2 do
  if redis.call('GET', KEYS[at]) == ARGV[1] then redis.call('DEL', KEYS[at]) end
  redis.call('INCR', KEYS[at + 1])
  redis.call('PEXPIRE', KEYS[at + 1], ARGV[2])
end
return 1
