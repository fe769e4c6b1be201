-- Put before the scripts of budgets: the rules of policies/books.py as far as they need them. Amounts are nano-dollars.

-- The UTC day of a time, `2026-11-21`. Source: H. Hinnant, chrono-Compatible Low-Level Date Algorithms, civil_from_days.
local function day_of(time)
  local days = math.floor(time / 86400000000) + 719468
  local era = math.floor(days / 146097)
  local of_era = days - era * 146097
  local year = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local since_march = math.floor((5 * of_year + 2) / 153)
  local month = since_march < 10 and since_march + 3 or since_march - 9
  local day = of_year - math.floor((153 * since_march + 2) / 5) + 1
  return string.format('%04d-%02d-%02d', year + era * 400 + (month <= 2 and 1 or 0), month, day)
end

-- A whole number as text, which Lua would write with an exponent where it is large.
local function digits(number)
  return string.format('%.0f', number)
end

-- How accounts stand: by key, what is posted and what is pending; those of `more` as well.
local function standings(keys, more)
  local found = {}
  for _, each in ipairs({keys, more}) do
    for _, key in ipairs(each) do
      if not found[key] then
        local account = redis.call('HMGET', key, 'posted', 'pending')
        found[key] = {tonumber(account[1] or 0), tonumber(account[2] or 0)}
      end
    end
  end
  return found
end

-- The same as a list in the order of keys.
local function listed(standings, keys)
  local found = {}
  for i, key in ipairs(keys) do found[i] = standings[key] end
  return found
end

-- Adds to what is posted in an account, or pending. To take away, subtract from 0: a negated 0 is no number to Redis.
local function add(standings, key, what, amount)
  standings[key][what == 'posted' and 1 or 2] = redis.call('HINCRBY', key, what, amount)
end

-- The limits of accounts: what people have set in place of the configured ones, where those are still configured.
local function limits_of(key, accounts)
  if #accounts == 0 then return {} end
  local fields, limits = {}, {}
  for i, account in ipairs(accounts) do fields[i] = account.field end
  for i, raised in ipairs(redis.call('HMGET', key, unpack(fields))) do
    limits[i] = accounts[i].limit
    local limit, instead_of = string.match(raised or '', '^(%d+):(%d+):')
    if tonumber(instead_of) == limits[i] then limits[i] = tonumber(limit) end
  end
  return limits
end

local function lines_of(text)
  local found = {}
  for line in string.gmatch(text or '', '[^\n]+') do found[#found + 1] = line end
  return found
end

-- Ends a loan. How it has ended is known for a while yet.
local function finish(loan, state, leases)
  redis.call('HSET', loan, 'state', state)
  redis.call('HDEL', loan, 'amount', 'wish', 'accounts')
  redis.call('PEXPIRE', loan, ask.kept)
  redis.call('ZREM', leases, ask.call)
end

-- Notes that an account was used now: in itself, and for a session in the list of its budget's.
local function used(key, account, now)
  redis.call('EXPIRE', key, account.kept)
  if account.list then
    redis.call('ZADD', KEYS[account.list], now, account.window)
    redis.call('ZREMRANGEBYRANK', KEYS[account.list], 0, -1 - ask.most_listed)
    redis.call('EXPIRE', KEYS[account.list], account.kept)
  end
end

-- The cost ledger as it will be with the lines of `ask.spent`: of each its key, its dimensions and its sums. A key is
-- read so that it can be written.
local function ledger()
  local found = {}
  for _, line in ipairs(ask.spent) do
    local sums, known = {}, redis.call('HGET', KEYS[line.key], line.dimensions)
    for sum in string.gmatch(known or '', '%d+') do sums[#sums + 1] = tonumber(sum) end
    for i, amount in ipairs(line.metrics) do sums[i] = digits((sums[i] or 0) + amount) end
    found[#found + 1] = {KEYS[line.key], line.dimensions, table.concat(sums, ':')}
  end
  return found
end

local function enter(lines)
  for _, line in ipairs(lines) do
    redis.call('HSET', line[1], line[2], line[3])
    redis.call('EXPIRE', line[1], ask.ledger_kept)
  end
end
