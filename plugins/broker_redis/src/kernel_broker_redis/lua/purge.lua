-- Delete the waiting and parked messages of a queue.
--
-- KEYS  parked zset, parked hash, list...
-- reply number of messages deleted

local count = redis.call('ZCARD', KEYS[1])
for i = 3, #KEYS do
  count = count + redis.call('LLEN', KEYS[i])
end
redis.call('UNLINK', unpack(KEYS))
return count
