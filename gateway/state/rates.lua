-- Put before the scripts of limits: the rule of policies/limits.py. A rate is a hash with `tat` and `given`.

local MINUTE = 60000000
local MOST_OWED = 60 * MINUTE

local function share_of(amount, most)
  return math.floor(amount * MINUTE / most)
end

-- The theoretical arrival time once `amount` is taken, and 0; or as it is, and how long it takes until that fits.
local function take(tat, now, amount, most)
  local begins = math.max(tat, now)
  local share = share_of(amount, most)
  local after = begins + share
  if after - now > MINUTE then
    local wait = (share < MINUTE and after - MINUTE or begins) - now
    if wait > 0 and amount > 0 then return tat, wait end
    after = math.min(after, now + MOST_OWED)
  end
  return after, 0
end

-- The same once a call that took `took` has really used `used`, and what all calls have given back so far.
local function correct(tat, given, mark, now, took, used, most)
  local more = share_of(used, most) - share_of(took, most)
  if more >= 0 then return math.min(math.max(tat, now) + more, now + MOST_OWED), given end
  local back = math.min(-more, math.max(mark - given - now, 0))
  return tat - back, given + back
end
