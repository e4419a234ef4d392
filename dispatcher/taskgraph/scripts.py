"""The Lua scripts over RQ's keys: each is one atomic step and one round trip over at most `port.BATCH` jobs.

RQ's keys have no hash tags, so RQ and these scripts need a Redis that is no cluster. Their shared part is in `moves`.
"""

from __future__ import annotations

from dispatcher.taskgraph.moves import MOVES

CREATE = (
    MOVES
    + r"""
-- ARGV: stamp, template, rows; returns the numbers of those that were there already
local fields = cjson.decode(ARGV[2])
local base = #fields
local size

local function set(name, value)
  fields[size + 1], fields[size + 2] = name, value
  size = size + 2
end

local function describe(row)
  local queue, state, parents = row[2], row[3], row[7]
  size = base
  set('created_at', NOW_TEXT)
  set('data', row[4])
  set('description', row[5])
  set('timeout', row[6])
  set('origin', queue)
  set('status', state)
  set('coditect_state', state)
  if state ~= 'deferred' and state ~= 'scheduled' then set('enqueued_at', NOW_TEXT) end
  if #parents > 0 then
    set('dependency_id', parents[1])
    set('dependency_ids', '["' .. table.concat(parents, '", "') .. '"]')
  end
end

local function depend(id, parents)
  local key = JOB .. ':' .. id .. ':dependencies'
  for at = 1, #parents, 1000 do
    call('SADD', key, unpack(parents, at, math.min(at + 999, #parents)))
  end
end

local queues, there = {}, {}
for number, row in ipairs(cjson.decode(ARGV[3])) do
  local id, queue, state, parents = row[1], row[2], row[3], row[7]
  if call('EXISTS', JOB .. id) == 1 then
    there[#there + 1] = number - 1
  else
    queues[queue] = true
    describe(row)
    call('HSET', JOB .. id, unpack(fields, 1, size))
    depend(id, parents)
    known[id] = state
    if state == 'deferred' then
      for _, parent in ipairs(parents) do later('SADD', JOB .. parent .. ':dependents', id) end
    end
    if state == 'started' then
      start(id, queue, state)
    elseif state == 'deferred' and #parents > 0 and finished(parents) then
      release(id, queue)
    else
      enlist(id, queue, state, '+inf')
    end
  end
end
write()
for queue in pairs(queues) do call('SADD', 'rq:queues', QUEUE .. queue) end
return there
"""
)

TELL = (
    MOVES
    + r"""
-- ARGV: stamp, rows, most dependents to look at; returns ids without a job, ids that could not be changed and
-- finished ids whose dependents are left
local rows = cjson.decode(ARGV[2])
local budget = tonumber(ARGV[3])
local lost, refused, left = {}, {}, {}

local function note(id, row, execution, began)
  local entry = {'type', row[3] == 'finished' and '1' or '2', 'worker_name', WORKER}
  local function add(name, value)
    if value and value ~= '' then
      entry[#entry + 1] = name
      entry[#entry + 1] = value
    end
  end
  add('exc_string', row[6])
  add('return_value', row[5])
  if execution then
    add('execution_id', execution)
    add('execution_started_at', began)
    add('execution_ended_at', NOW_SECONDS)
  end
  local stream = 'rq:results:' .. id
  -- put right, and not ended again: what it ended with stays the last
  if row[8] == 1 and call('EXISTS', stream) == 1 then return end
  -- a repeat has the same entry id, which Redis refuses
  redis.pcall('XADD', stream, 'MAXLEN', '10', row[4] ~= '' and row[4] or '*', unpack(entry))
end

local function change(row, status, told)
  local id, queue, state = row[1], row[2], row[3]
  local anew = row[8] == 1
  if status == state and told == state and not anew then
    if row[4] ~= '' and (state == 'finished' or state == 'failed') then note(id, row) end
    return
  end
  local key = JOB .. id
  local execution, began = leave(id, queue, status, not anew and told)
  if state == 'started' then
    start(id, queue, state)
    return
  end
  enlist(id, queue, state, row[7])
  if state == 'queued' then
    call('HSET', key, 'status', state, 'coditect_state', state, 'enqueued_at', NOW_TEXT, 'started_at', '',
      'ended_at', '')
  elseif state == 'finished' or state == 'failed' then
    call('HSET', key, 'status', state, 'coditect_state', state, 'ended_at', NOW_TEXT, 'last_heartbeat',
      NOW_TEXT)
    note(id, row, execution, began)
  else
    call('HSET', key, 'status', state, 'coditect_state', state)
    if state == 'deferred' then
      for _, parent in ipairs(call('SMEMBERS', JOB .. ':' .. id .. ':dependencies')) do
        later('SADD', JOB .. parent .. ':dependents', id)
      end
    end
  end
end

for number, row in ipairs(rows) do
  local id = row[1]
  local ok, answer = pcall(function()
    local job = call('HMGET', JOB .. id, 'status', 'coditect_state')
    if not job[1] then return 'lost' end
    change(row, job[1], job[2])
    if row[3] == 'deferred' then waits[id] = true end
  end)
  if not ok then refused[#refused + 1] = id
  elseif answer then
    lost[#lost + 1] = number - 1
  else
    known[id] = row[3]
  end
end
for _, row in ipairs(rows) do
  local id = row[1]
  if row[3] == 'finished' and known[id] then
    local children = call('SRANDMEMBER', JOB .. id .. ':dependents', budget + 1)
    if #children > budget then
      left[#left + 1] = id
    else
      budget = budget - #children
      release_some(id, children)
    end
  end
end
write()
return {lost, refused, left}
"""
)

RELEASE = (
    MOVES
    + r"""
-- ARGV: stamp, id of a finished job, cursor, most dependents to look at; returns the next cursor, 0 at the end
if call('HGET', JOB .. ARGV[2], 'status') ~= 'finished' then return '0' end
local page = call('SSCAN', JOB .. ARGV[2] .. ':dependents', ARGV[3], 'COUNT', ARGV[4])
for at = 1, #page[2], 1000 do
  release_some(ARGV[2], {unpack(page[2], at, math.min(at + 999, #page[2]))})
end
write()
return page[1]
"""
)

ADOPT = (
    MOVES
    + r"""
-- ARGV: stamp, queues by level, room by capability, most in all, most to look at from the head of one level's queues,
-- number and length of the piece to look at further behind
-- returns id, queue and capability of our jobs, then id, queue and data of those that somebody else made
local room, most = cjson.decode(ARGV[3]), tonumber(ARGV[4])
local ours, others = {}, {}

local function put(list, one, two, three)
  local size = #list
  list[size + 1], list[size + 2], list[size + 3] = one, two, three
end

-- Takes a job if its capability, the last word of its description, has room; whether it has none and stays. What else
-- somebody put here is taken out of the way.
local function stays(id, queue)
  local job = call('HMGET', JOB .. id, 'status', 'coditect_state', 'description')
  local status, told = job[1], job[2]
  if not status or status == 'started' then return false end
  local capability = told and told ~= 'failed' and string.match(job[3] or '', '%S*$')
  if capability and (room[capability] or 0) <= 0 then return true end
  most = most - 1
  -- a job that a person put here keeps what we told of it: `requests` finds it by that
  start(id, queue, told == 'queued' and 'started' or told or '')
  if capability then
    room[capability] = room[capability] - 1
    put(ours, id, queue, capability)
  elseif not told then
    put(others, id, queue, call('HGET', JOB .. id, 'data') or '')
  end
  return false
end

local function put_back(queue, ids)
  local backwards = {}
  for at = #ids, 1, -1 do backwards[#backwards + 1] = ids[at] end
  for at = 1, #backwards, 1000 do
    call('LPUSH', QUEUE .. queue, unpack(backwards, at, math.min(at + 999, #backwards)))
  end
end

local function look_behind(queue)
  local size, length = tonumber(ARGV[7]), call('LLEN', QUEUE .. queue)
  local first = length > 0 and tonumber(ARGV[6]) * size % length or 0
  for _, id in ipairs(call('LRANGE', QUEUE .. queue, first, first + size - 1)) do
    if most > 0 and not stays(id, queue) then call('LREM', QUEUE .. queue, 1, id) end
  end
end

for _, queues in ipairs(cjson.decode(ARGV[2])) do
  local looks, full, back = tonumber(ARGV[5]), queues, {}
  while #full > 0 and most > 0 and looks > 0 do
    local share, left = math.ceil(most / #full), {}
    for _, queue in ipairs(full) do
      local number = math.min(share, most, looks)
      local ids = number > 0 and call('LPOP', QUEUE .. queue, number) or {}
      looks = looks - #ids
      if #ids == number then left[#left + 1] = queue end
      for _, id in ipairs(ids) do
        if stays(id, queue) then
          back[queue] = back[queue] or {}
          table.insert(back[queue], id)
        end
      end
    end
    full = left
  end
  if #full > 0 and most > 0 then look_behind(queues[1]) end
  for queue, ids in pairs(back) do put_back(queue, ids) end
end
write()
return {ours, others}
"""
)

REMOVE = (
    MOVES
    + r"""
-- ARGV: stamp, ids
for _, id in ipairs(cjson.decode(ARGV[2])) do
  local key = JOB .. id
  local job = call('HMGET', key, 'status', 'coditect_state', 'origin')
  if job[3] then leave(id, job[3], job[1], job[2]) end
  call('UNLINK', key, key .. ':dependents', JOB .. ':' .. id .. ':dependencies', 'rq:results:' .. id)
end
write()
"""
)
