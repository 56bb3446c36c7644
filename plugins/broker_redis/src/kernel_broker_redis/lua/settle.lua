-- Carry out verdicts, each only if its tag is still reserved: a message that was taken away is skipped, and
-- doing it twice changes nothing. Starts with restoring.lua.
--
-- KEYS  unacked, unacked_index, kw.attempts
-- ARGV  prefix, sep, then per settlement: verdict, tag, count (0 or 1), extra
--       verdict  A finished | Q back to the front of its list | D parked, extra = unix time it is due
--                X dead, extra = the reason as a JSON string
-- reply number of settlements carried out

local time = redis.call('TIME')
local done = 0

local function finish(tag)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  redis.call('HDEL', attempts, redis.sha1hex(raw))
  drop(tag)
  return 1
end

local function park(tag, due)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  redis.call('HSET', prefix .. 'kw.parked.msg:' .. queue, tag, raw)
  redis.call('ZADD', prefix .. 'kw.parked:' .. queue, due, tag)
  drop(tag)
  return 1
end

local function bury(tag, count, reason)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  local sha, id = redis.sha1hex(raw), redis.sha1hex(tag)
  local lost = (tonumber(redis.call('HGET', attempts, sha)) or 0) + count
  -- a microsecond apart: letters of one batch keep their order
  local died_at = string.format('%d.%06d', time[1], math.min(time[2] + done, 999999))
  redis.call('HSET', prefix .. 'kw.dead.msg:' .. queue, id, raw)
  redis.call('HSET', prefix .. 'kw.dead.info:' .. queue, id,
    '{"reason": ' .. reason .. ', "died_at": ' .. died_at .. ', "attempts": ' .. lost .. '}')
  redis.call('ZADD', prefix .. 'kw.dead:' .. queue, died_at, id)
  redis.call('HDEL', attempts, sha)
  drop(tag)
  return 1
end

for i = 3, #ARGV, 4 do
  local verdict, tag, count, extra = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if verdict == 'A' then
    done = done + finish(tag)
  elseif verdict == 'Q' then
    done = done + restore(tag, count)
  elseif verdict == 'D' then
    done = done + park(tag, extra)
  else
    done = done + bury(tag, count, extra)
  end
end
return done
