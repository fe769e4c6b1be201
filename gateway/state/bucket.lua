-- Put before the scripts of what is counted at routes: the rule of routing/course.py.

-- The bucket into which is counted at `now`, where `newest` was the last one. Both in Unix seconds.
local function bucket_at(now, newest)
  local at = now - now % ask.width
  if at < newest and newest <= now + ask.set_back then return newest end
  return at
end
