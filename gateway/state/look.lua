-- How accounts stand. KEYS: the limits, the accounts. ask: accounts of {limit, field}.
local now = clock()
local keys = {unpack(KEYS, 2)}
return {'OK', now, listed(standings(keys), keys), limits_of(KEYS[1], ask.accounts)}
