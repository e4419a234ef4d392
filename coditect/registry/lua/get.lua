-- ARGV: agent id; returns a list like that of `find`
local found = {}
describe(ARGV[1], found)
return found
