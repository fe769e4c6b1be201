-- Brings a piece of something long, which is kept for a while until a step takes it. ask: parcel, from, kept; and the
-- piece. Tells how much there is.
local now = clock()
local key = base .. 'parcel:' .. ask.parcel
local length = redis.call('STRLEN', key)
if length == ask.from then length = redis.call('APPEND', key, ARGV[2]) end
redis.call('PEXPIRE', key, ask.kept)
return {'OK', now, length}
