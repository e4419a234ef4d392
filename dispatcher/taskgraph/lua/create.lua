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
