-- Adds to the counts of a route, once. KEYS: the last flush of the gateway, the newest bucket. ask: flush, counts of
-- {key, number}, buckets (the beginning of their keys), width, set_back, kept. Tells the bucket.
local now = clock()
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local at = bucket_at(math.floor(now / 1000000), tonumber(redis.call('GET', KEYS[2]) or 0))
local bucket = ask.buckets .. string.format('%.0f', at)
redis.call('EXISTS', bucket)
if ask.flush > last then
  for _, count in ipairs(ask.counts) do
    redis.call('HINCRBY', bucket, count[1], string.format('%.0f', count[2]))
  end
  redis.call('EXPIRE', bucket, ask.kept)
  redis.call('SET', KEYS[1], string.format('%.0f', ask.flush), 'EX', ask.kept)
  redis.call('SET', KEYS[2], string.format('%.0f', at), 'EX', ask.kept)
end
return {'OK', now, at}
