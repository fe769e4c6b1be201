-- Counts a use of a grant by a call, once. ask: id, call, cost, kept.
local now = clock()
local key, used = base .. 'grant:' .. ask.id, base .. 'use:' .. ask.id .. ':' .. ask.call
sure('string', used)
local values = redis.call('HMGET', key, 'expires', 'uses', 'cost', 'max_uses', 'max_cost', 'revoked')
local number = {}
for i = 1, 5 do number[i] = tonumber(values[i] or nil) end
local expires, uses, cost, max_uses, max_cost = unpack(number, 1, 5)
if not (expires and uses and cost) or values[6] then return {'NONE', now} end
if redis.call('EXISTS', used) == 1 then return {'OK', now} end
if now >= expires or max_uses and uses >= max_uses then return {'NONE', now} end
if max_cost and (cost >= max_cost or cost + ask.cost > max_cost) then return {'NONE', now} end
redis.call('HINCRBY', key, 'uses', 1)
redis.call('HINCRBY', key, 'cost', digits(ask.cost))
redis.call('SET', used, digits(ask.cost), 'PX', ask.kept)
return {'OK', now}
