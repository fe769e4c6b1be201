-- Tells the versions of approvals. ask: ids. 0 for one that is not there.
local now = clock()
local found = {}
for i, id in ipairs(ask.ids) do
  local values = unless_odd('HMGET', base .. 'of:' .. id, 'version', 'forget') or {}
  found[i] = not (values[2] and tonumber(values[2]) <= now) and tonumber(values[1] or 0) or 0
end
return {'OK', now, found}
