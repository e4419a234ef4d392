#!lua flags=allow-oom
-- KEYS: the bucket. ARGV: tokens wanted, µs for one token, µs of a full bucket, hold in ms, ms for which the slowest
-- rate stays; returns the tokens, the hold in ms and the µs until the next token. The rule is that of `TokenBucket`
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local bucket = redis.call('HMGET', KEYS[1], 'due', 'interval', 'tolerance', 'hold', 'until')
local begins = math.max(tonumber(bucket[1] or 0), now)
local interval, tolerance, hold = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if bucket[2] and tonumber(bucket[5]) > now and tonumber(bucket[2]) > interval then
  interval, tolerance, hold = tonumber(bucket[2]), tonumber(bucket[3]), tonumber(bucket[4])
else
  redis.call('HSET', KEYS[1], 'interval', ARGV[2], 'tolerance', ARGV[3], 'hold', ARGV[4],
    'until', string.format('%.0f', now + ARGV[5] * 1000))
end
local tokens = math.max(0, math.min(tonumber(ARGV[1]), math.floor((now + tolerance - begins) / interval)))
if tokens > 0 then
  begins = math.ceil(begins + tokens * interval)
  redis.call('HSET', KEYS[1], 'due', string.format('%.0f', begins))
end
redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(tonumber(ARGV[5]), (begins - now) / 1000)))
return {tokens, hold, math.ceil(math.max(0, begins + interval - tolerance - now))}
