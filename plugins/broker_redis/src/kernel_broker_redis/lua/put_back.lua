-- Put the entry of a kombu peer back on its lists, if it is still the one that was read. The peer may have been
-- running it, see lua/restoring.lua.
--
-- KEYS  unacked, unacked_index, kw.attempts, list...
-- ARGV  tag, entry as it was read, envelope to push
-- reply 1 if it was put back, 0 if the peer or another worker was faster

local entry = redis.call('HGET', KEYS[1], ARGV[1])
if entry ~= ARGV[2] then
  if not entry then
    redis.call('ZREM', KEYS[2], ARGV[1])
  end
  return 0
end
for i = 4, #KEYS do
  redis.call('RPUSH', KEYS[i], ARGV[3])
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
local sha = redis.sha1hex(ARGV[3])
local past = string.match(redis.call('HGET', KEYS[3], sha) or '0', '^[%d+]+')
redis.call('HSET', KEYS[3], sha, past .. 'r')
redis.call('EXPIRE', KEYS[3], 604800)
return 1
