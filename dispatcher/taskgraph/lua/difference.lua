-- ARGV: rows of id, queue, state, whether it is known to be in its queue; returns the numbers of those that are
-- missing or differ. What it looks at is bounded: few that may not be in their queues, which are long, and few of the
-- predecessors of each job, others the next time.
local differing, looks = {}, 16
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
  if job[1] ~= state or job[2] ~= state or not placed(id, queue, state, row[4]) then
    differing[#differing + 1] = number - 1
  end
end
return differing
