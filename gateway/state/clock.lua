-- Put before every script. A script is given its keys as KEYS, and all else that it has to know as one JSON text.
--
-- It reads everything that it changes before it changes anything: while a cluster moves keys to another node it is reading
-- that fails, and then nothing is changed. Times are microseconds of the server's clock. Numbers are binary fractions,
-- exact up to 2^53.

local ask = cjson.decode(ARGV[1])

-- The only clock that decides windows, leases and rates.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
