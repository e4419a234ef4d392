-- ARGV: agent id
if redis.call('ZSCORE', LEASES, ARGV[1]) then leave(ARGV[1], 'it was drained or stopped', now) end
return 1
