-- Put before the scripts of approvals and what goes with them. KEYS: how all their keys begin, and a key that never
-- is.
--
-- Neither of the two is ever there, so that a cluster that moves the slot to another node lets no script run
-- meanwhile: it would find one half of what belongs together. What people and agents are told is text as a gateway has
-- written it; here is only what finds it.

local base = KEYS[1] .. ':'

-- A whole number as text, which Lua would write with an exponent where it is large.
local function digits(number)
  return string.format('%.0f', number)
end

-- Fails, before anything is changed, where a key is of another type than the one that is needed.
local function sure(kind, ...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then error({err = 'WRONGTYPE ' .. key .. ' is a ' .. found}) end
  end
end

-- The same as redis.call, but nil where the key is of another type.
local function unless_odd(...)
  local found = redis.pcall(...)
  if type(found) == 'table' and found.err then
    if string.find(found.err, 'WRONGTYPE', 1, true) then return nil end
    error(found)
  end
  return found
end

-- Tells all gateways. Where a server does not let them, they look by themselves.
local function publish(...)
  redis.pcall('PUBLISH', base .. 'changed', table.concat({...}, '\n'))
end
