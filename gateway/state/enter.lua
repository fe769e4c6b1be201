-- Lets a call in. KEYS: its pass, then what each of its limits counts. ask: call, tokens, lease, pass_kept, come_again,
-- session_over, kept, limits of {key, what, most}. Tells of each limit how long to wait (0 not at all, -1 for ever), and
-- what it counts: calls, or for rates the theoretical arrival time.
local now = clock()
local inside = redis.call('EXISTS', KEYS[1]) == 1
local waits, counts, taken, refused = {}, {}, {}, false
for i, limit in ipairs(ask.limits) do
  local key = KEYS[i + 1]
  if limit.what == 'concurrent' then
    counts[i] = redis.call('ZCOUNT', key, '(' .. now, '+inf')
    waits[i] = counts[i] < limit.most and 0 or ask.come_again
  elseif limit.what == 'calls_per_session' then
    local known = redis.call('HMGET', key, 'calls', 'used')
    counts[i] = now - (known[2] or 0) < ask.session_over and tonumber(known[1] or 0) or 0
    waits[i] = counts[i] < limit.most and 0 or -1
  else
    local known = redis.call('HMGET', key, 'tat', 'given')
    counts[i] = tonumber(known[1] or 0)
    taken[i] = {0, tonumber(known[2] or 0)}
    taken[i][1], waits[i] = take(counts[i], now, limit.what == 'calls_per_minute' and 1 or ask.tokens, limit.most)
  end
  refused = refused or waits[i] ~= 0
end
if inside then return {'OK', now, waits, counts} end
if refused then return {'REACHED', now, waits, counts} end

local marks = {'tokens', ask.tokens}
for i, limit in ipairs(ask.limits) do
  local key = KEYS[i + 1]
  if limit.what == 'concurrent' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('ZADD', key, now + ask.lease, ask.call)
    counts[i] = counts[i] + 1
  elseif limit.what == 'calls_per_session' then
    counts[i] = counts[i] + 1
    redis.call('HSET', key, 'calls', counts[i], 'used', now)
  else
    counts[i] = taken[i][1]
    redis.call('HSET', key, 'tat', counts[i], 'given', taken[i][2])
    marks[#marks + 1] = limit.key
    marks[#marks + 1] = counts[i] + taken[i][2]
  end
  redis.call('PEXPIRE', key, ask.kept)
end
redis.call('HSET', KEYS[1], unpack(marks))
redis.call('PEXPIRE', KEYS[1], ask.pass_kept)
return {'OK', now, waits, counts}
