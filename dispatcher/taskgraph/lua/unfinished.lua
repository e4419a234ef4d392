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
