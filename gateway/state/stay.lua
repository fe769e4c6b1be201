-- Calls are still inside. KEYS: their passes and the places they take. ask: lease, pass_kept, kept,
-- passes of {call, key, places}.
local now = clock()
for i = 1, #KEYS do redis.call('TYPE', KEYS[i]) end
for _, pass in ipairs(ask.passes) do
  redis.call('PEXPIRE', KEYS[pass.key], ask.pass_kept)
  for _, place in ipairs(pass.places) do
    redis.call('ZADD', KEYS[place], 'XX', now + ask.lease, pass.call)
    redis.call('PEXPIRE', KEYS[place], ask.kept)
  end
end
return {'OK', now}
