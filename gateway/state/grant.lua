-- Keeps a grant, once. ask: id, text, expires, max_uses or none, max_cost or none, kept.
local now = clock()
local key = base .. 'grant:' .. ask.id
sure('hash', key)
sure('zset', base .. 'grants')
if redis.call('EXISTS', key) == 1 or now >= ask.expires then return {'SAME', now} end
redis.call('HSET', key, 'text', ask.text, 'expires', digits(ask.expires), 'uses', 0, 'cost', 0)
if ask.max_uses then redis.call('HSET', key, 'max_uses', digits(ask.max_uses)) end
if ask.max_cost then redis.call('HSET', key, 'max_cost', digits(ask.max_cost)) end
redis.call('PEXPIRE', key, digits(math.ceil((ask.expires - now) / 1000) + ask.kept))
redis.call('ZREMRANGEBYSCORE', base .. 'grants', '-inf', digits(now))
redis.call('ZADD', base .. 'grants', digits(ask.expires), ask.id)
publish(ask.id)
return {'OK', now}
