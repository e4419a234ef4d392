-- ARGV: stamp, rows, most dependents to look at; returns ids that could not be changed and finished ids whose dependents
-- are left
local rows = cjson.decode(ARGV[2])
local budget = tonumber(ARGV[3])
local refused, left = {}, {}

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

for _, row in ipairs(rows) do
  local id = row[1]
  local ok = pcall(function()
    local job = call('HMGET', JOB .. id, 'status', 'coditect_state')
    if not job[1] then return end
    change(row, job[1], job[2])
    if row[3] == 'deferred' then waits[id] = true end
    known[id] = row[3]
  end)
  if not ok then refused[#refused + 1] = id end
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
return {refused, left}
