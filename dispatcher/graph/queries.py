"""The Lua scripts that only look at RQ's keys; what they compare is drawn in `keys` and `moves`."""

from __future__ import annotations

COUNTS = r"""
-- ARGV: queues, registries; returns for each queue its length and the size of each registry
local counts = {}
for _, queue in ipairs(cjson.decode(ARGV[1])) do
  counts[#counts + 1] = redis.call('LLEN', 'rq:queue:' .. queue)
  for _, registry in ipairs(cjson.decode(ARGV[2])) do
    counts[#counts + 1] = redis.call('ZCARD', 'rq:' .. registry .. ':' .. queue)
  end
end
return counts
"""

REQUESTS = r"""
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
"""

DIFFERENCE = r"""
-- ARGV: rows of id, queue, state; returns the numbers of the missing and of the others that differ
local missing, differing, queued = {}, {}, {}
local function waiting(queue)
  if not queued[queue] then
    local ids = {}
    for _, id in ipairs(redis.call('LRANGE', 'rq:queue:' .. queue, 0, -1)) do ids[id] = true end
    queued[queue] = ids
  end
  return queued[queue]
end
local function registered(id)
  for _, parent in ipairs(redis.call('SMEMBERS', 'rq:job::' .. id .. ':dependencies')) do
    if redis.call('SISMEMBER', 'rq:job:' .. parent .. ':dependents', id) == 0 then return false end
  end
  return true
end
local function placed(id, queue, state)
  if state == 'queued' then return waiting(queue)[id] end
  if state == 'started' then
    local execution = redis.call('ZRANGE', 'rq:executions:' .. id, 0, 0)[1]
    return execution and redis.call('ZSCORE', 'rq:wip:' .. queue, id .. ':' .. execution)
  end
  return redis.call('ZSCORE', 'rq:' .. state .. ':' .. queue, id) and (state ~= 'deferred' or registered(id))
end
for number, row in ipairs(cjson.decode(ARGV[1])) do
  local id, queue, state = row[1], row[2], row[3]
  local job = redis.call('HMGET', 'rq:job:' .. id, 'status', 'coditect_state')
  if not job[1] then
    missing[#missing + 1] = number - 1
  elseif job[1] ~= state or job[2] ~= state or not placed(id, queue, state) then
    differing[#differing + 1] = number - 1
  end
end
return {missing, differing}
"""

UNFINISHED = r"""
-- ARGV: queues, the first of their jobs to look at, how many of each place; returns the numbers of the queues that may
-- have more, and the workflows of our jobs
local first, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local found, workflows, full = {}, {}, {}
-- What we failed or canceled, and somebody took out of that registry, is a request.
local function asked(id, queue, told)
  return (told == 'failed' or told == 'canceled') and not redis.call('ZSCORE', 'rq:' .. told .. ':' .. queue, id)
end
local function look(id, queue)
  local workflow = string.match(id, '^([^_]+)_')
  if not workflow or found[workflow] then return end
  local told = redis.call('HGET', 'rq:job:' .. id, 'coditect_state')
  if told and not asked(id, queue, told) then
    found[workflow] = true
    workflows[#workflows + 1] = workflow
  end
end
for number, queue in ipairs(cjson.decode(ARGV[1])) do
  local more = false
  local function go_over(command, place)
    local members = redis.call(command, 'rq:' .. place .. ':' .. queue, first, first + most - 1)
    for _, member in ipairs(members) do look(string.match(member, '^[^:]*'), queue) end
    more = more or #members == most
  end
  go_over('LRANGE', 'queue')
  for _, registry in ipairs({'wip', 'deferred', 'scheduled'}) do go_over('ZRANGE', registry) end
  if more then full[#full + 1] = number - 1 end
end
return {full, workflows}
"""
