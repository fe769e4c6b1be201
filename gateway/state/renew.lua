-- Renews leases of loans that are still lent. KEYS: the leases. ask: lease, calls. Names those calls that lend no more.
local now = clock()
local ended = {}
redis.call('ZCARD', KEYS[1])
for _, call in ipairs(ask.calls) do
  if redis.call('ZSCORE', KEYS[1], call) then
    redis.call('ZADD', KEYS[1], 'XX', now + ask.lease, call)
  else
    ended[#ended + 1] = call
  end
end
return {'OK', now, ended}
