-- ARGV: agent id, registration, load, terms, lease in ms
local id, registration, load, terms, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
unlist(id)
redis.call('ZREM', GONE, id)
redis.call('HSET', REGISTRATIONS, id, registration)
redis.call('HSET', TERMS, id, terms)
for _, term in ipairs(cjson.decode(terms)) do
  redis.call('ZADD', INDEX, 0, term .. '\0' .. id)
end
write(id, load, lease)
return 1
