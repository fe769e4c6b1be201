-- Tells messages whose time has come, and gives them to who asks. ask: now, lease, most, bytes. Tells also whether
-- there may be more. Each is kept as `TIME TRIES TEXT`.
local now = clock()
sure('zset', base .. 'outbox', base .. 'taken')
sure('hash', base .. 'messages')
local until_now = digits(ask.now)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'taken', '-inf', until_now, 'LIMIT', 0, 1000)) do
  local message = redis.call('HGET', base .. 'messages', id)
  redis.call('ZREM', base .. 'taken', id)
  if message then redis.call('ZADD', base .. 'outbox', string.match(message, '^(%d+) ') or until_now, id) end
end

local found, room = {}, ask.bytes
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'outbox', '-inf', until_now, 'LIMIT', 0, ask.most)) do
  if room <= 0 then return {'OK', now, found, 1} end
  local message = redis.call('HGET', base .. 'messages', id)
  redis.call('ZREM', base .. 'outbox', id)
  if message then
    redis.call('ZADD', base .. 'taken', digits(ask.now + ask.lease), id)
    local tries, text = string.match(message, '^%d+ (%d+) (.*)$')
    found[#found + 1] = {id, tonumber(tries or 0), text or message}
    room = room - #message
  end
end
return {'OK', now, found, 0}
