-- Puts the next version of an approval in the place of the one before. ask: change of {id, version, state, tenant,
-- created, due, kept, change, doc}, messages of {id, at, text}; answer of {length, parcel, kept} or none; fresh as for
-- hold and share, where another approval takes its place; before, where it is known what the version before was;
-- again, where the server is told what it has lost.
--
-- What has lost the versions that this one builds on takes it nevertheless. But a claim is made only in the history in
-- which the call was approved: in another one it may have been sent already.
local now = clock()
local change, fresh, answer = ask.change, ask.fresh, ask.answer
local found = known_surely(change.id, now)
if not found then return {'GONE', now} end
local version = tonumber(found.version) or 0
if version == change.version and found.change == change.change then return {'OK', now} end
local next_one = version == change.version - 1
if version >= change.version or not next_one and not ask.before and not ask.again then return {'LATE', now} end
if next_one and ask.before and found.change ~= ask.before then return {'LATE', now} end
local lost = ask.again or not next_one
if change.state == 'consumed' and not ask.again and (lost or found.history ~= history()) then
  return {'DOUBTED', now}
end

sure_of_indexes(change, found.state)
if fresh then
  local other = active(fresh.key, now)
  if other and other ~= change.id or known_surely(fresh.id, now) then return {'LATE', now} end
  sure_of_indexes(fresh)
  if not room_for(fresh, now) then return {'FULL', now} end
end
if fresh and not brought(fresh) or answer and not brought(answer) then return {'BRING', now} end

local key = base .. 'of:' .. change.id
redis.call('HSET', key, 'version', change.version, 'state', change.state, 'change', change.change, 'doc', change.doc)
if lost then
  redis.call('HSET', key, 'history', 'lost')
elseif change.state == 'approved' then
  redis.call('HSET', key, 'history', history())
end
for _, list in ipairs({lists(found.state, change.tenant)}) do redis.call('ZREM', list, change.id) end
index(change, now)
if answer then
  local kept = base .. 'answer:' .. change.id
  keep(kept, answer)
  redis.call('PEXPIRE', kept, answer.kept)
end
if fresh then open(fresh, now) end
announce(ask.messages)
if fresh then publish(change.id, fresh.id) else publish(change.id) end
return {'OK', now}
