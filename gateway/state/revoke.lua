-- Ends a grant. ask: id. It is known as ended until its time is over: somebody may try yet to make it.
local now = clock()
local key = base .. 'grant:' .. ask.id
sure('zset', base .. 'grants')
local values = redis.call('HMGET', key, 'text', 'revoked')
if not values[1] or values[2] then return {'NONE', now} end
redis.call('HSET', key, 'revoked', 1)
redis.call('ZREM', base .. 'grants', ask.id)
publish(ask.id)
return {'OK', now}
