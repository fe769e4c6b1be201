-- Lends to a call. KEYS: its loan, the leases, the limits, the accounts, lists of sessions.
-- ask: call, want, least, lease, most_listed, accounts of {hard, limit, field, window, checked, kept, list}.
local now = clock()
local today = day_of(now)
local keys = {unpack(KEYS, 4, 3 + #ask.accounts)}
local joined = table.concat(keys, '\n')
local wish = digits(ask.want) .. ' ' .. digits(ask.least)

local loan = redis.call('HMGET', KEYS[1], 'state', 'amount', 'wish', 'accounts')
if loan[1] and (loan[1] ~= 'PENDING' or loan[3] ~= wish or loan[4] ~= joined) then return {'CONFLICT', now} end
if not loan[1] then
  for _, account in ipairs(ask.accounts) do
    local is = account.window
    if account.checked and is ~= today and is ~= string.sub(today, 1, 7) and is ~= 'none-' .. today then
      return {'STALE', now}
    end
  end
end

redis.call('ZCARD', KEYS[2])
local limits = limits_of(KEYS[3], ask.accounts)
local balances = standings(keys)
if loan[1] then return {'OK', now, tonumber(loan[2]), listed(balances, keys), limits} end

local amount, least_left, least_unspent, tightest, used_up, contended = ask.want, nil, nil, 0, 0, 1
for i, account in ipairs(ask.accounts) do
  if account.hard then
    local unspent = limits[i] - balances[keys[i]][1]
    local left = unspent - balances[keys[i]][2]
    if not least_left or left < least_left then least_left, tightest = left, i end
    if not least_unspent or unspent < least_unspent then least_unspent, used_up = unspent, i end
    if unspent < ask.least then contended = 0 end
  end
end
if least_left then amount = math.max(math.min(amount, least_left), 0) end
if amount < ask.least then
  if contended == 0 then tightest = used_up end
  return {'SHORT', now, tightest, contended, listed(balances, keys), limits}
end

redis.call('HSET', KEYS[1], 'state', 'PENDING', 'amount', amount, 'wish', wish, 'accounts', joined)
redis.call('ZADD', KEYS[2], now + ask.lease, ask.call)
for i, account in ipairs(ask.accounts) do
  add(balances, keys[i], 'pending', amount)
  used(keys[i], account, now)
end
return {'OK', now, amount, listed(balances, keys), limits}
