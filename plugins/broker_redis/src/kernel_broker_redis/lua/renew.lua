-- Renew the lease of a holder and of what it holds, by the server's clock. XX: what was taken away stays away.
--
-- KEYS  unacked_index, kw.holders, kw.epoch
-- ARGV  identity, lease, name for a new epoch, tag...
-- reply epoch, {place among the tags, ...} of those that are gone
--
-- kw.epoch names the data of this database. A server that lost its data, or another server, has another one: there
-- nobody took what is gone.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local stamp = string.format('%.6f', now)
redis.call('ZADD', KEYS[2], string.format('%.6f', now + tonumber(ARGV[2])), ARGV[1])
redis.call('SET', KEYS[3], ARGV[3], 'NX')
local lost, scores, n = {}, {}, 0
for i = 4, #ARGV do
  scores[n + 1], scores[n + 2] = stamp, ARGV[i]
  n = n + 2
  if n >= 4000 or i == #ARGV then -- unpack() allows 7999 values
    if redis.call('ZADD', KEYS[1], 'XX', 'CH', unpack(scores)) < n / 2 then
      for j = 2, n, 2 do
        if not redis.call('ZSCORE', KEYS[1], scores[j]) then
          lost[#lost + 1] = i - (n - j) / 2 - 3
        end
      end
    end
    scores, n = {}, 0
  end
end
return {redis.call('GET', KEYS[3]), lost}
