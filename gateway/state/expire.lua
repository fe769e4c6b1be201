-- Posts loans whole that nobody has renewed in time. KEYS: the leases. ask: loans (the beginning of their keys), most,
-- kept. Says how many.
local now = clock()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ask.most)
for _, call in ipairs(due) do
  local key = ask.loans .. call
  local loan = redis.call('HMGET', key, 'state', 'amount', 'accounts')
  local lenders = lines_of(loan[3])
  local balances = standings(lenders)
  if loan[1] == 'PENDING' then
    redis.call('HSET', key, 'state', 'EXPIRED')
    redis.call('PEXPIRE', key, ask.kept)
    for _, lender in ipairs(lenders) do
      add(balances, lender, 'posted', loan[2])
      add(balances, lender, 'pending', 0 - loan[2])
    end
  end
  redis.call('ZREM', KEYS[1], call)
end
return {'OK', now, #due}
