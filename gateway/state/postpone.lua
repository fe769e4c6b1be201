-- A message was not taken and is tried again later, once. ask: id, at.
local now = clock()
sure('zset', base .. 'outbox', base .. 'taken')
local message = redis.call('HGET', base .. 'messages', ask.id)
local at, tries, text = string.match(message or '', '^(%d+) (%d+) (.*)$')
if not at or at == digits(ask.at) then return {'SAME', now} end
redis.call('HSET', base .. 'messages', ask.id, digits(ask.at) .. ' ' .. digits(tries + 1) .. ' ' .. text)
redis.call('ZREM', base .. 'taken', ask.id)
redis.call('ZADD', base .. 'outbox', digits(ask.at), ask.id)
return {'OK', now}
