-- ARGV: stamp, ids
for _, id in ipairs(cjson.decode(ARGV[2])) do
  local key = JOB .. id
  local job = call('HMGET', key, 'status', 'coditect_state', 'origin')
  if job[3] then leave(id, job[3], job[1], job[2]) end
  call('UNLINK', key, key .. ':dependents', JOB .. ':' .. id .. ':dependencies', 'rq:results:' .. id)
end
write()
