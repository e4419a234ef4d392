-- ARGV: stamp, id of a finished job, cursor, most dependents to look at; returns the next cursor, 0 at the end
if call('HGET', JOB .. ARGV[2], 'status') ~= 'finished' then return '0' end
local page = call('SSCAN', JOB .. ARGV[2] .. ':dependents', ARGV[3], 'COUNT', ARGV[4])
for at = 1, #page[2], 1000 do
  release_some(ARGV[2], {unpack(page[2], at, math.min(at + 999, #page[2]))})
end
write()
return page[1]
