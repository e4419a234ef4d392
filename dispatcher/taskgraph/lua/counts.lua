-- ARGV: queues, registries; returns for each queue its length and the size of each registry
local counts = {}
for _, queue in ipairs(cjson.decode(ARGV[1])) do
  counts[#counts + 1] = redis.call('LLEN', 'rq:queue:' .. queue)
  for _, registry in ipairs(cjson.decode(ARGV[2])) do
    counts[#counts + 1] = redis.call('ZCARD', 'rq:' .. registry .. ':' .. queue)
  end
end
return counts
