-- Raises a loan to an amount. KEYS: the loan, the leases, the limits, the accounts.
-- ask: call, amount, lease, accounts of {hard, limit, field}.
local now = clock()
local keys, place = {unpack(KEYS, 4)}, {}
for i, key in ipairs(keys) do place[key] = i end

local loan = redis.call('HMGET', KEYS[1], 'state', 'amount', 'accounts')
redis.call('ZCARD', KEYS[2])
local limits = limits_of(KEYS[3], ask.accounts)
local balances = standings(keys)
if loan[1] ~= 'PENDING' then return {'ENDED', now, 0, listed(balances, keys), limits} end

local lent, lenders = tonumber(loan[2]), lines_of(loan[3])
local more = math.max(ask.amount - lent, 0)
for _, key in ipairs(lenders) do
  local i = place[key]
  if not i then return {'OTHERS', now, 0, listed(balances, keys), limits} end
  local posted, pending = unpack(balances[key])
  if more > 0 and ask.accounts[i].hard and posted + pending + more > limits[i] then
    return {'SHORT', now, lent, listed(balances, keys), limits}
  end
end

redis.call('HSET', KEYS[1], 'amount', lent + more)
redis.call('ZADD', KEYS[2], now + ask.lease, ask.call)
for _, key in ipairs(lenders) do add(balances, key, 'pending', more) end
return {'OK', now, lent + more, listed(balances, keys), limits}
