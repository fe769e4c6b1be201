-- Tells grants whose time is not over. ask: from (how many to pass over), most. Tells of each the text, uses and cost;
-- and how many were looked at.
local now = clock()
local ids = redis.call('ZRANGEBYSCORE', base .. 'grants', '(' .. digits(now), '+inf', 'LIMIT', ask.from, ask.most)
local found = {}
for _, id in ipairs(ids) do
  local values = unless_odd('HMGET', base .. 'grant:' .. id, 'text', 'uses', 'cost', 'revoked') or {''}
  if values[1] and not values[4] then
    found[#found + 1] = {id, values[1], tonumber(values[2] or 0), values[3] or '0'}
  end
end
return {'OK', now, found, #ids}
