-- Posts what a call has cost that has no loan. KEYS: what is known of it, the accounts, lists of sessions, days of the
-- cost ledger. ask: lost_until, cost, kept, ledger_kept, most_listed, accounts of {window, kept, list}, spent of {key,
-- dimensions, metrics}.
--
-- What is tried again when it may have been forgotten already that it was posted is not posted: see `lost_until`.
local now = clock()
local keys = {unpack(KEYS, 2, 1 + #ask.accounts)}

local known = redis.call('EXISTS', KEYS[1]) == 1
local balances = standings(keys)
local lines = ledger()
if known or now >= ask.lost_until then return {'SAME', now, listed(balances, keys)} end

redis.call('SET', KEYS[1], '', 'PX', ask.kept)
for i, key in ipairs(keys) do
  add(balances, key, 'posted', ask.cost)
  used(key, ask.accounts[i], now)
end
enter(lines)
return {'OK', now, listed(balances, keys)}
