-- ARGV: term; returns a list of (registration, load, ms left of the lease)
local found = {}
for _, member in ipairs(redis.call('ZRANGEBYLEX', INDEX, '[' .. ARGV[1] .. '\0', '(' .. ARGV[1] .. '\1')) do
  describe(string.sub(member, #ARGV[1] + 2), found)
end
return found
