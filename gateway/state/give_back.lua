-- Gives back the use of a grant by a call, if it is known. ask: id, call.
local now = clock()
local key, used = base .. 'grant:' .. ask.id, base .. 'use:' .. ask.id .. ':' .. ask.call
local cost, there = redis.call('GET', used), redis.call('HEXISTS', key, 'uses') == 1
if cost then
  redis.call('DEL', used)
  if there then
    redis.call('HINCRBY', key, 'uses', -1)
    redis.call('HINCRBY', key, 'cost', 0 - cost)
  end
end
return {'OK', now}
