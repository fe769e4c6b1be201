-- Pays a loan back. KEYS: the loan, the leases, the accounts. ask: call, kept.
--
-- A loan that is not known yet is noted as paid back: the wish for it may be on its way still.
local now = clock()
local keys = {unpack(KEYS, 3)}

local loan = redis.call('HMGET', KEYS[1], 'state', 'amount', 'accounts')
redis.call('ZCARD', KEYS[2])
local lenders = lines_of(loan[3])
local balances = standings(keys, lenders)
if loan[1] and loan[1] ~= 'PENDING' then return {'SAME', now, listed(balances, keys)} end

finish(KEYS[1], 'VOIDED', KEYS[2])
for _, key in ipairs(lenders) do add(balances, key, 'pending', 0 - loan[2]) end
return {'OK', now, listed(balances, keys)}
