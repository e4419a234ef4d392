#!lua flags=allow-oom
-- KEYS: as for `mark_start`. ARGV: agent id
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('DEL', KEYS[2])
return 1
