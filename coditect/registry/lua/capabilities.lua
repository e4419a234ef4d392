-- no ARGV; returns the names of capabilities, each once
local names, last = {}, nil
for _, member in ipairs(redis.call('ZRANGEBYLEX', INDEX, '[c\0', '(c\1')) do
  local name = string.match(member, '^c%z(.-)%z')
  if name ~= last then
    table.insert(names, name)
    last = name
  end
end
return names
