-- ARGV: queues, most; returns kind, id, kind, id...
local found = {}
local function compare(kind, one, other, gone)
  for _, id in ipairs(redis.call('ZDIFF', 2, one, other)) do
    if #found >= 2 * tonumber(ARGV[2]) then return end
    local status = redis.call('HGET', 'rq:job:' .. id, 'status')
    if status and not (gone and (status == 'failed' or status == 'canceled')) then
      found[#found + 1] = kind
      found[#found + 1] = id
    elseif gone and not status then
      redis.call('SREM', one, id)  -- somebody deleted the job
    end
  end
end
for _, queue in ipairs(cjson.decode(ARGV[1])) do
  for _, state in ipairs({'failed', 'canceled'}) do
    local registry, told = 'rq:' .. state .. ':' .. queue, 'coditect:told:' .. state .. ':' .. queue
    local there, noted = redis.call('ZCARD', registry), redis.call('SCARD', told)
    -- equal numbers of many are taken for equal sets; the reconciler compares them one by one
    if there ~= noted or there <= 256 then
      compare(state == 'failed' and 'stray' or 'cancel', registry, told)
      compare('requeue', told, registry, true)
    end
  end
end
return found
