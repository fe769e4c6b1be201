-- Tells approvals in some states, the oldest first. ask: states, tenant or none, after (an id) and at (its time) or
-- none, since (the time that is in the id, for one that nothing is known of) or none, most, bytes. Tells also whether there are more, and the id and the time of the last that was looked at.
local now = clock()
local at, after = ask.at, ask.after
if after and not at then
  local created = unless_odd('HGET', base .. 'of:' .. after, 'created')
  at = created and tonumber(created) or ask.since
end

local some = {}
for _, state in ipairs(ask.states) do
  local list = base .. 'in:' .. state .. (ask.tenant and ':' .. ask.tenant or '')
  local from = 0
  if at then
    from = redis.call('ZCOUNT', list, '-inf', '(' .. digits(at))
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', list, digits(at), digits(at))) do
      if id <= after then from = from + 1 end
    end
  end
  local page = redis.call('ZRANGE', list, from, from + ask.most - 1, 'WITHSCORES')
  for i = 1, #page, 2 do some[#some + 1] = {page[i], tonumber(page[i + 1])} end
end
table.sort(some, function(one, other)
  return one[2] < other[2] or one[2] == other[2] and one[1] < other[1]
end)

local ids = {}
for i = 1, math.min(ask.most, #some) do ids[i] = some[i][1] end
local rows, looked = told_several(ids, now)
if looked == 0 then return {'OK', now, rows, 0} end
local more = (looked < #some or #some >= ask.most) and 1 or 0
return {'OK', now, rows, more, some[looked][1], some[looked][2]}
