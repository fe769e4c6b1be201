-- Sets the course of a route. KEYS: the courses of all. ask: route, course, epoch; expected, or none where it is to be
-- set if its epoch is lower.
local now = clock()
local known = redis.call('HGET', KEYS[1], ask.route)
if known == ask.course then return {'OK', now} end
local epoch = tonumber(string.match(known or '', '^(%d+):') or 0)
if ask.expected and epoch ~= ask.expected or epoch >= ask.epoch then return {'LATE', now} end
redis.call('HSET', KEYS[1], ask.route, ask.course)
return {'OK', now}
