-- Posts what a call has cost and pays its loan back. KEYS: its loan, the leases, the accounts, lists of sessions, days of
-- the cost ledger. ask: call, cost, lost_until, kept, ledger_kept, most_listed, accounts of {window, kept, list}, spent of
-- {key, dimensions, metrics}.
--
-- A loan of which nothing is known was forgotten long after its end; or, until `lost_until`, it is the server that has
-- lost it, and what the call has cost must not be lost, too.
local now = clock()
local keys = {unpack(KEYS, 3, 2 + #ask.accounts)}

local loan = redis.call('HMGET', KEYS[1], 'state', 'amount', 'accounts')
local state = loan[1]
redis.call('ZCARD', KEYS[2])
local lenders = lines_of(loan[3])
local balances = standings(keys, lenders)
local lines = ledger()
if state == 'POSTED' or state == 'VOIDED' or not state and now >= ask.lost_until then
  return {'SAME', now, listed(balances, keys)}
end

finish(KEYS[1], 'POSTED', KEYS[2])
if state then
  for _, key in ipairs(lenders) do
    add(balances, key, state == 'EXPIRED' and 'posted' or 'pending', 0 - loan[2])
    add(balances, key, 'posted', ask.cost)
  end
else
  for i, key in ipairs(keys) do
    add(balances, key, 'posted', ask.cost)
    used(key, ask.accounts[i], now)
  end
end
enter(lines)
return {'OK', now, listed(balances, keys)}
