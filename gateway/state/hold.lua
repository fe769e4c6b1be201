-- Opens an approval, once. ask: fresh of {id, version, state, tenant, key, created, due, kept, size, length, parcel,
-- change, doc}, messages of {id, at, text}, share, bytes. Tells the approval that there is: this one, or the one that
-- is active with its key.
local now = clock()
local fresh = ask.fresh
local id, found = fresh.id, known_surely(fresh.id, now)
if not found then id, found = active(fresh.key, now) end
if found then
  local row = told(id, found, ask.bytes)
  return {'THERE', now, row}
end
sure_of_indexes(fresh)
if not room_for(fresh, now) then return {'FULL', now} end
if not brought(fresh) then return {'BRING', now} end
open(fresh, now)
announce(ask.messages)
publish(fresh.id)
return {'OK', now}
