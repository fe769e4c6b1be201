-- Renews the leases of loans, as far as they are lent still. KEYS: the leases. ask: lease, calls.
local now = clock()
redis.call('ZCARD', KEYS[1])
for _, call in ipairs(ask.calls) do redis.call('ZADD', KEYS[1], 'XX', now + ask.lease, call) end
return {'OK', now}
