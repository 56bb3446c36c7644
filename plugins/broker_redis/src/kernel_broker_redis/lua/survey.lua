-- What is to be restored: holders whose lease is over, and entries that nobody renewed for too long.
--
-- KEYS  unacked_index, kw.holders
-- ARGV  visibility timeout of kombu peers, the same for entries of kw holders, how many at most
-- reply {holder, ...}, {tag of kombu, ...}, {tag of a kw holder that left no lease, ...}

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local function before(age)
  return string.format('%.6f', now - age)
end

local dead = redis.call('ZRANGE', KEYS[2], '-inf', string.format('%.6f', now), 'BYSCORE', 'LIMIT', 0, 100)
local old = redis.call('ZRANGE', KEYS[1], '-inf', before(ARGV[1]), 'BYSCORE', 'LIMIT', 0, ARGV[3], 'WITHSCORES')
local peers, orphans = {}, {}
for i = 1, #old, 2 do
  if string.sub(old[i], 1, 3) ~= 'kw|' then
    peers[#peers + 1] = old[i]
  elseif now - old[i + 1] > tonumber(ARGV[2]) then
    orphans[#orphans + 1] = old[i]
  end
end
return {dead, peers, orphans}
