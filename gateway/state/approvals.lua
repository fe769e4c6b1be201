-- Put before the scripts of approvals, after approval_keys.lua.

local ACTIVE = {pending = true, approved = true, consumed = true}
local FIELDS = {'version', 'state', 'tenant', 'key', 'created', 'size', 'length', 'change', 'doc', 'forget', 'history'}

-- Ended ones that make room, where their tenant's share is full. What people have yet to look at is not among them.
local FORGETTABLE = {'done', 'denied', 'expired', 'cancelled', 'superseded', 'lapsed', 'revoked'}
local AT_ONCE = 32

-- Which history of changes the server goes on with: another one once it was started again, or a replica has taken over,
-- and what was told last may be lost. Empty where nobody may know.
local function history()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

-- What is known of an approval: nil where there is none, or no longer; and whether something else has its place.
local function known(id, now)
  local values = unless_odd('HMGET', base .. 'of:' .. id, unpack(FIELDS))
  if not values then return nil, true end
  local found = {}
  for i, field in ipairs(FIELDS) do found[field] = values[i] or nil end
  if not found.version or found.forget and tonumber(found.forget) <= now then return nil, false end
  return found, false
end

-- The same where something is to be changed: it fails at what has the approval's place.
local function known_surely(id, now)
  sure('hash', base .. 'of:' .. id)
  return known(id, now)
end

-- What is told of something that has the place of an approval.
local function odd_one(id)
  return {id, 0, '', '', 0, ''}
end

-- An approval as it is told: its body with it, as far as `room` bytes go. And how many of these it takes.
local function told(id, found, room)
  local length = tonumber(found.length) or 0
  local body = length > 0 and length <= room and unless_odd('GET', base .. 'body:' .. id) or ''
  if length <= room and #body ~= length then return odd_one(id), 0 end
  local doc = found.doc or ''
  return {id, tonumber(found.version) or 0, found.change or '', doc, length, body}, #doc + #body
end

-- Several of them, in order, as many as `ask.bytes` allow but one at least. What has the place of one has no version.
-- And how many ids were looked at.
local function told_several(ids, now)
  local rows, room = {}, ask.bytes
  for number, id in ipairs(ids) do
    local found, odd = known(id, now)
    if found then
      local row, taken = told(id, found, room)
      rows[#rows + 1] = row
      room = room - taken
    elseif odd then
      rows[#rows + 1] = odd_one(id)
    end
    if room <= 0 then return rows, number end
  end
  return rows, #ids
end

-- What may be long comes with the command, or was brought piece by piece before.
local function brought(of)
  return of.length == 0 or ARGV[2] ~= nil or redis.call('STRLEN', base .. 'parcel:' .. of.parcel) == of.length
end

local function keep(key, of)
  if ARGV[2] then
    redis.call('SET', key, ARGV[2])
  else
    redis.call('RENAME', base .. 'parcel:' .. of.parcel, key)
    redis.call('PERSIST', key)
  end
end

local function lists(state, tenant)
  return base .. 'in:' .. state, base .. 'in:' .. state .. ':' .. tenant
end

local function sure_of_indexes(of, state)
  sure('zset', base .. 'due', base .. 'ends', base .. 'outbox', lists(of.state, of.tenant))
  if state then sure('zset', lists(state, of.tenant)) end
  sure('hash', base .. 'messages', base .. 'share')
end

-- Puts an approval where it is found: among those of its state, those that are due, those that end.
local function index(of, now)
  local all, own = lists(of.state, of.tenant)
  redis.call('ZADD', all, digits(of.created), of.id)
  redis.call('ZADD', own, digits(of.created), of.id)
  if of.due then
    redis.call('ZADD', base .. 'due', digits(of.due), of.id)
  else
    redis.call('ZREM', base .. 'due', of.id)
  end
  if of.kept then
    redis.call('HSET', base .. 'of:' .. of.id, 'forget', digits(now + of.kept))
    redis.call('ZADD', base .. 'ends', digits(now + of.kept), of.id)
  else
    redis.call('HDEL', base .. 'of:' .. of.id, 'forget')
    redis.call('ZREM', base .. 'ends', of.id)
  end
end

-- Takes all of an approval away that has ended.
local function forget(id, found)
  redis.call('ZREM', base .. 'ends', id)
  redis.call('ZREM', base .. 'due', id)
  redis.call('DEL', base .. 'of:' .. id, base .. 'body:' .. id, base .. 'answer:' .. id)
  if not found.tenant then return end
  for _, list in ipairs({lists(found.state, found.tenant)}) do unless_odd('ZREM', list, id) end
  if unless_odd('GET', base .. 'key:' .. found.key) == id then redis.call('DEL', base .. 'key:' .. found.key) end
  local left = unless_odd('HINCRBY', base .. 'share', found.tenant, 0 - (tonumber(found.size) or 0))
  if left and left <= 0 then redis.call('HDEL', base .. 'share', found.tenant) end
end

-- Forgets some of what has ended long enough ago.
local function tidy(now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'ends', '-inf', digits(now), 'LIMIT', 0, AT_ONCE)) do
    forget(id, known(id, 0) or {})
  end
end

-- Makes room in the share of a tenant, by forgetting what has ended, the oldest first. Whether there is room then.
local function room_for(of, now)
  local free = ask.share - (tonumber(redis.call('HGET', base .. 'share', of.tenant)) or 0)
  if of.size <= free then return true end
  local oldest = {}
  for _, state in ipairs(FORGETTABLE) do
    local _, own = lists(state, of.tenant)
    local some = redis.call('ZRANGE', own, 0, AT_ONCE - 1, 'WITHSCORES')
    for i = 1, #some, 2 do oldest[#oldest + 1] = {some[i], tonumber(some[i + 1])} end
  end
  table.sort(oldest, function(one, other) return one[2] < other[2] end)
  for _, each in ipairs(oldest) do
    if of.size <= free then return true end
    local found = known(each[1], 0)
    if found then
      free = free + (tonumber(found.size) or 0)
      forget(each[1], found)
    end
  end
  return of.size <= free
end

-- Keeps a new approval.
local function open(of, now)
  redis.call('HSET', base .. 'of:' .. of.id, 'version', of.version, 'state', of.state, 'tenant', of.tenant,
    'key', of.key, 'created', digits(of.created), 'size', of.size, 'length', of.length, 'change', of.change,
    'doc', of.doc, 'history', history())
  if of.length > 0 then keep(base .. 'body:' .. of.id, of) end
  redis.call('SET', base .. 'key:' .. of.key, of.id)
  redis.call('HINCRBY', base .. 'share', of.tenant, of.size)
  index(of, now)
end

-- The approval that is active with a key, and its id.
local function active(key, now)
  sure('string', base .. 'key:' .. key)
  local id = redis.call('GET', base .. 'key:' .. key)
  local found = id and known_surely(id, now)
  if found and ACTIVE[found.state] then return id, found end
end

-- Puts messages where those who tell people find them.
local function announce(messages)
  for _, message in ipairs(messages) do
    redis.call('HSET', base .. 'messages', message.id, digits(message.at) .. ' 0 ' .. message.text)
    redis.call('ZADD', base .. 'outbox', digits(message.at), message.id)
  end
end
