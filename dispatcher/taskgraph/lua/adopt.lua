-- ARGV: stamp, queues by level, room by capability, most in all, most to look at from the head of one level's queues,
-- number and length of the piece to look at further behind
-- returns id, queue and capability of the jobs that may run, then id, queue and the last state told of those that
-- somebody put here
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
  local status, told = job[1], job[2] ~= '' and job[2]
  if not status or status == 'started' then return false end
  local capability = told and told ~= 'failed' and string.match(job[3] or '', '%S*$')
  if capability and (room[capability] or 0) <= 0 then return true end
  most = most - 1
  -- a job that a person put here keeps what we told of it: `requests` finds it by that
  start(id, queue, told == 'queued' and 'started' or told or '')
  if capability then
    room[capability] = room[capability] - 1
    put(ours, id, queue, capability)
  else
    put(others, id, queue, told or '')
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
