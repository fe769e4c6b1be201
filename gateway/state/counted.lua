-- Tells what was counted at a route. KEYS: the newest bucket, then those that are asked for. ask: times of these, width,
-- set_back. Tells the bucket that is open, and of all before it that are asked for and have something in them the time
-- and the counts.
local now = clock()
local open = bucket_at(math.floor(now / 1000000), tonumber(redis.call('GET', KEYS[1]) or 0))
local found = {}
for i, at in ipairs(ask.times) do
  if at < open then
    local counts = redis.call('HGETALL', KEYS[i + 1])
    if #counts > 0 then found[#found + 1] = {at, counts} end
  end
end
return {'OK', now, open, found}
