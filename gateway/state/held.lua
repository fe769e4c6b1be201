-- Tells an approval. ask: id, or key, of which it is the last; bytes.
local now = clock()
local id = ask.id or redis.call('GET', base .. 'key:' .. ask.key)
if not id then return {'OK', now, {}} end
return {'OK', now, (told_several({id}, now))}
