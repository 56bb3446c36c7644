-- Carry out verdicts, each only if its tag is still reserved: a message that was taken away is skipped, and
-- doing it twice changes nothing. Starts with restoring.lua.
--
-- KEYS  unacked, unacked_index, kw.attempts
-- ARGV  prefix, sep, then per settlement: verdict, tag, count (0 or 1), extra
--       verdict  A finished | Q back to the front of its list | L the same, of a holder that vanished
--                D parked, extra = unix time it is due | X dead, extra = the reason as a JSON string
--                M stays reserved, counted from now on
-- reply number of settlements carried out

local time = redis.call('TIME')
local done = 0

local function finish(tag)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  redis.call('HDEL', attempts, redis.sha1hex(raw), tag)
  drop(tag)
  return 1
end

local function mark(tag)
  local queue, raw = take(tag)
  if not queue or redis.call('HSETNX', attempts, tag, 1) == 0 then
    return 0
  end
  local sha = redis.sha1hex(raw)
  local counted, returns = past(sha)
  remember(sha, counted + 1, returns, '')
  return 1
end

local function park(tag, due, count)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  redis.call('HSET', prefix .. 'kw.parked.msg:' .. queue, tag, raw)
  redis.call('ZADD', prefix .. 'kw.parked:' .. queue, due, tag)
  drop(tag)
  redis.call('HDEL', attempts, tag)
  if count == 1 then -- a return, and no attempt
    local sha = redis.sha1hex(raw)
    local counted, returns, recovered = past(sha)
    remember(sha, counted, '+' .. (tonumber(returns) or 0) + 1, recovered)
  end
  return 1
end

local function bury(tag, count, reason)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  local sha, id = redis.sha1hex(raw), redis.sha1hex(tag)
  local lost = past(sha) + count
  local _, _, step = split_tag(tag)
  -- a microsecond apart: letters of one batch keep their order
  local died_at = string.format('%d.%06d', time[1], math.min(time[2] + done, 999999))
  redis.call('HSET', prefix .. 'kw.dead.msg:' .. queue, id, raw)
  redis.call('HSET', prefix .. 'kw.dead.info:' .. queue, id,
    '{"reason": ' .. reason .. ', "died_at": ' .. died_at .. ', "attempts": ' .. lost .. ', "step": ' .. step .. '}')
  redis.call('ZADD', prefix .. 'kw.dead:' .. queue, died_at, id)
  redis.call('HDEL', attempts, sha, tag)
  drop(tag)
  return 1
end

for i = 3, #ARGV, 4 do
  local verdict, tag, count, extra = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if verdict == 'A' then
    done = done + finish(tag)
  elseif verdict == 'Q' then
    done = done + restore(tag, count, false)
  elseif verdict == 'L' then
    done = done + restore(tag, 0, true)
  elseif verdict == 'D' then
    done = done + park(tag, extra, count)
  elseif verdict == 'M' then
    done = done + mark(tag)
  else
    done = done + bury(tag, count, extra)
  end
end
return done
