-- Tells approvals of which something is due, in order, and forgets some of what has ended long ago. ask: now, from
-- (how many to pass over), most, bytes. Tells also how many were looked at.
local now = clock()
tidy(now)
local ids = redis.call('ZRANGEBYSCORE', base .. 'due', '-inf', digits(ask.now), 'LIMIT', ask.from, ask.most)
local rows, looked = told_several(ids, now)
return {'OK', now, rows, looked}
