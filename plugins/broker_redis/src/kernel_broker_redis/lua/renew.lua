-- Renew the lease of a holder and of what it holds, by the server's clock. XX: what was taken away stays away.
--
-- KEYS  unacked_index, kw.holders
-- ARGV  identity, lease, tag...

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local stamp = string.format('%.6f', now)
redis.call('ZADD', KEYS[2], string.format('%.6f', now + tonumber(ARGV[2])), ARGV[1])
local scores, n = {}, 0
for i = 3, #ARGV do
  scores[n + 1], scores[n + 2] = stamp, ARGV[i]
  n = n + 2
  if n >= 4000 or i == #ARGV then -- unpack() allows 7999 values
    redis.call('ZADD', KEYS[1], 'XX', unpack(scores))
    scores, n = {}, 0
  end
end
return 1
