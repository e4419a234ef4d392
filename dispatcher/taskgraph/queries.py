"""The Lua scripts that only read RQ's keys; `keys` and `moves` describe what they compare."""

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
-- ARGV: rows of id, queue, state, whether it is known to be in its queue; returns the numbers of the missing and of the
-- others that differ. What it looks at is bounded: few that may not be in their queues, which are long, and few of the
-- predecessors of each job, others the next time.
local missing, differing, looks = {}, {}, 16
local function registered(id)
  for _, parent in ipairs(redis.call('SRANDMEMBER', 'rq:job::' .. id .. ':dependencies', 8)) do
    if redis.call('SISMEMBER', 'rq:job:' .. parent .. ':dependents', id) == 0 then return false end
  end
  return true
end
local function waits(id, queue, known)
  if known == 1 or looks == 0 then return true end
  looks = looks - 1
  return redis.call('LPOS', 'rq:queue:' .. queue, id)
end
local function placed(id, queue, state, known)
  if state == 'queued' then return waits(id, queue, known) end
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
  elseif job[1] ~= state or job[2] ~= state or not placed(id, queue, state, row[4]) then
    differing[#differing + 1] = number - 1
  end
end
return {missing, differing}
"""

UNFINISHED = r"""
-- ARGV: queues, the first of their jobs to look at, how many of each place; returns the numbers of the queues that may
-- have more, the workflows of our jobs, and what is queued
local first, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local found, workflows, full, queued = {}, {}, {}, {}
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
    for _, member in ipairs(members) do
      look(string.match(member, '^[^:]*'), queue)
      if place == 'queue' then queued[#queued + 1] = member end
    end
    more = more or #members == most
  end
  go_over('LRANGE', 'queue')
  for _, registry in ipairs({'wip', 'deferred', 'scheduled'}) do go_over('ZRANGE', registry) end
  if more then full[#full + 1] = number - 1 end
end
return {full, workflows, queued}
"""
