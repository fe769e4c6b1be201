-- Pins the definitions of a server's tools. KEYS: the versions of all servers, its pins, their texts.
-- ask: server, tools as [name, pin, text]; before, as a list of one pin or of none, where the pin has to be that one,
-- absent where only what has none is pinned.
local now = clock()
local changed = 0
local found = {}
local pins, texts = KEYS[2], KEYS[3]
redis.call('HLEN', texts)
redis.call('HLEN', KEYS[1])
for place, tool in ipairs(ask.tools) do
  found[place] = redis.call('HGET', pins, tool[1])
end
for place, tool in ipairs(ask.tools) do
  local set = not found[place]
  if ask.before then set = (found[place] or '') == (ask.before[1] or '') end
  if set then
    redis.call('HSET', pins, tool[1], tool[2])
    redis.call('HSET', texts, tool[1], tool[3])
    found[place] = tool[2]
    changed = changed + 1
  end
end
if changed > 0 then redis.call('HINCRBY', KEYS[1], ask.server, 1) end
return {changed, now, found}
