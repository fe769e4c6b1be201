-- A message was taken, or is given up. ask: id.
local now = clock()
sure('zset', base .. 'outbox', base .. 'taken')
redis.call('HDEL', base .. 'messages', ask.id)
redis.call('ZREM', base .. 'outbox', ask.id)
redis.call('ZREM', base .. 'taken', ask.id)
return {'OK', now}
