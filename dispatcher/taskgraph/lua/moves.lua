-- The moves of a job between RQ's queues and registries: the text before each script that writes.
--
-- PLACES     score in the job's registry, as stock 2.12 writes it
-- queued     no registry: `rq:queue:<queue>`
-- started    +inf in `rq:wip:<queue>`. Stock writes the end of a heartbeat there, and every tool that counts
--            fails what is past it; +inf is never past
-- deferred   the moment it was deferred
-- scheduled  the due time, +inf when it is unknown
-- finished   +inf: kept until it is removed, as with stock's `result_ttl=-1`
-- failed     -1, as with stock's `failure_ttl=-1`
-- canceled   the moment it was canceled
--
-- A job whose `status` differs from the last one written by the dispatcher (`coditect_state`) was changed by a stock
-- tool: it is then taken out of every place, else only out of the one that its status names.
local JOB, QUEUE, WIP = 'rq:job:', 'rq:queue:', 'rq:wip:'
local TOLD = 'coditect:told:'
local REGISTRIES = {'deferred', 'scheduled', 'finished', 'failed', 'canceled'}
local NOW = cjson.decode(ARGV[1])
local NOW_TEXT, NOW_SECONDS, NOW_WHOLE, WORKER, NONCE = NOW[1], NOW[2], NOW[3], NOW[4], NOW[5]
local SCORES = {deferred = NOW_WHOLE, finished = '+inf', failed = '-1', canceled = NOW_WHOLE}
local call = redis.call
local started = 0

-- What goes into the queues and registries is gathered and written at the end, a key at a time: a job comes once in a
-- script, and calls are what a script costs.
local ORDER = {'ZREM', 'SREM', 'ZADD', 'SADD', 'RPUSH'}
local gathered = {ZREM = {}, SREM = {}, ZADD = {}, SADD = {}, RPUSH = {}}

local function later(command, key, one, two)
  local list = gathered[command][key]
  if not list then
    list = {}
    gathered[command][key] = list
  end
  list[#list + 1] = one
  if two then list[#list + 1] = two end
end

local function write()
  for _, command in ipairs(ORDER) do
    for key, list in pairs(gathered[command]) do
      for at = 1, #list, 1000 do
        call(command, key, unpack(list, at, math.min(at + 999, #list)))
      end
    end
  end
end

local function mirrored(state)
  return state == 'failed' or state == 'canceled'
end

local function end_executions(id, queue)
  local keys = {'rq:executions:' .. id}
  local last, began
  for _, execution in ipairs(call('ZRANGE', keys[1], 0, -1)) do
    local member = id .. ':' .. execution
    local hash = 'rq:execution:' .. member
    last, began = execution, call('HGET', hash, 'created_at')
    keys[#keys + 1] = hash
    later('ZREM', WIP .. queue, member)
  end
  if last then call('DEL', unpack(keys)) end
  return last, began
end

local function unlist(id, queue, state)
  later('ZREM', 'rq:' .. state .. ':' .. queue, id)
  if mirrored(state) then later('SREM', TOLD .. state .. ':' .. queue, id) end
end

local function leave(id, queue, status, told)
  if status ~= told then
    call('LREM', QUEUE .. queue, 0, id)
    call('LREM', QUEUE .. queue .. ':intermediate', 0, id)
    for _, state in ipairs(REGISTRIES) do unlist(id, queue, state) end
    return end_executions(id, queue)
  elseif status == 'queued' then
    call('LREM', QUEUE .. queue, 1, id)
  elseif status == 'started' then
    return end_executions(id, queue)
  elseif status then
    unlist(id, queue, status)
  end
end

local function enlist(id, queue, state, score)
  if state == 'queued' then
    later('RPUSH', QUEUE .. queue, id)
    return
  end
  later('ZADD', 'rq:' .. state .. ':' .. queue, SCORES[state] or score, id)
  if mirrored(state) then later('SADD', TOLD .. state .. ':' .. queue, id) end
end

-- `told` is what the job is noted to have been told: not always that it is started.
local function start(id, queue, told)
  started = started + 1
  local execution = NONCE .. string.format('%08x', started)
  local member = id .. ':' .. execution
  call('HSET', 'rq:execution:' .. member, 'id', execution, 'created_at', NOW_SECONDS, 'last_heartbeat', NOW_SECONDS,
    'worker_name', WORKER)
  call('ZADD', 'rq:executions:' .. id, '+inf', execution)
  later('ZADD', WIP .. queue, '+inf', member)
  call('HSET', JOB .. id, 'status', 'started', 'started_at', NOW_TEXT, 'last_heartbeat', NOW_TEXT, 'worker_name',
    WORKER, 'coditect_state', told)
end

local known = {}  -- jobs whose status this script has seen or set

local function finished(parents)
  for _, parent in ipairs(parents) do
    local status = known[parent]
    if not status then
      status = call('HGET', JOB .. parent, 'status')
      known[parent] = status
    end
    if status ~= 'finished' then return false end
  end
  return true
end

-- Asks a few predecessors first: a job that waits for a thousand is looked at a thousand times.
local function met(id)
  local key = JOB .. ':' .. id .. ':dependencies'
  for _, most in ipairs({16, 128}) do
    local some = call('SRANDMEMBER', key, most)
    if #some == 0 or not finished(some) then return false end
    if #some < most then return true end
  end
  return finished(call('SMEMBERS', key))
end

local function release(id, queue)
  known[id] = 'queued'
  later('ZREM', 'rq:deferred:' .. queue, id)
  call('HSET', JOB .. id, 'status', 'queued', 'enqueued_at', NOW_TEXT, 'coditect_state', 'queued')
  later('RPUSH', QUEUE .. queue, id)
end

local waits = {}

-- The dependents of one finished job: those that wait for nothing else are queued and taken out of the set.
local function release_some(parent, children)
  local key = JOB .. parent .. ':dependents'
  for _, id in ipairs(children) do
    local told = known[id]
    if told and told ~= 'deferred' then
      later('SREM', key, id)
    elseif not waits[id] then
      local job = call('HMGET', JOB .. id, 'status', 'origin')
      if job[1] == 'deferred' and job[2] and met(id) then
        release(id, job[2])
        later('SREM', key, id)
      elseif job[1] == 'deferred' or not job[1] then
        waits[id] = true
      else
        later('SREM', key, id)
      end
    end
  end
end
