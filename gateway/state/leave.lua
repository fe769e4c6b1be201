-- Lets a call out, which has used so many tokens. KEYS: its pass, then what each of its limits counts.
-- ask: call, tokens, kept, limits of {key, what, most}.
local now = clock()
local pass = {}
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do pass[found[i]] = tonumber(found[i + 1]) end

local rates = {}
for i, limit in ipairs(ask.limits) do
  local key, mark = KEYS[i + 1], pass[limit.key]
  if limit.what == 'concurrent' then
    redis.call('ZCARD', key)
  elseif limit.what == 'tokens_per_minute' then
    local known = redis.call('HMGET', key, 'tat', 'given')
    if mark then
      local tat, given = tonumber(known[1] or 0), tonumber(known[2] or 0)
      rates[i] = {correct(tat, given, mark, now, pass.tokens, ask.tokens, limit.most)}
    end
  end
end

for i, limit in ipairs(ask.limits) do
  local key = KEYS[i + 1]
  if limit.what == 'concurrent' then
    redis.call('ZREM', key, ask.call)
  elseif rates[i] then
    redis.call('HSET', key, 'tat', rates[i][1], 'given', rates[i][2])
    redis.call('PEXPIRE', key, ask.kept)
  end
end
redis.call('DEL', KEYS[1])
return {'OK', now}
