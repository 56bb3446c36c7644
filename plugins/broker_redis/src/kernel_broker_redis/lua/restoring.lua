-- Prelude of the scripts that take an entry out of `unacked`. Not a script of its own.
--
-- An entry written by fetch.lua:
--   unacked        hash   tag -> [<envelope>, "", "<queue>"]      (kombu's form, default JSON separators)
--   unacked_index  zset   tag, score = server time of the reserve or of the last renewal
--   tag                   kw|<identity of the holder>|<serial>|<priority step>
--   kw.attempts    hash   sha1 of the envelope -> counted deliveries; then, where there are any, "+" and the number of
--                         returns; then "r" when its last holder died and nobody has accounted for that yet.
--                         An entry, even a 0, says that the message was delivered before.
--                         tag -> 1 for a reserved message that is marked, so that its mark counts once only

local unacked, index, attempts = KEYS[1], KEYS[2], KEYS[3]
local prefix, sep = ARGV[1], ARGV[2]
local ATTEMPTS_KEPT_S = 604800 -- a week without any restored message: the counts may go

local function split_tag(tag)
  return string.match(tag, '^kw|(.*)|(%d+)|(%d+)$')
end

-- Queue and envelope of an entry. Queue names hold no quotes and are short, so the last bytes are enough.
local function unwrap(entry)
  local queue = string.match(string.sub(entry, -1100), ', "", "([^"]*)"%]$')
  if queue then
    return queue, string.sub(entry, 2, -(#queue + 10))
  end
end

local function list_key(queue, step)
  if step == '0' then
    return prefix .. queue
  end
  return prefix .. queue .. sep .. step
end

-- Remove the entry of `tag`; gives queue and envelope, or nothing when it is not ours any more.
local function take(tag)
  local entry = redis.call('HGET', unacked, tag)
  if not entry then
    redis.call('ZREM', index, tag)
    return nil
  end
  local queue, raw = unwrap(entry)
  if not queue then
    return nil
  end
  return queue, raw
end

local function drop(tag)
  redis.call('HDEL', unacked, tag)
  redis.call('ZREM', index, tag)
end

-- Counted deliveries of an envelope, its returns as "+<n>" or "", and "r" or "".
local function past(sha)
  local count, returns, recovered = string.match(redis.call('HGET', attempts, sha) or '0', '^(%d+)(%+?%d*)(r?)$')
  return tonumber(count), returns, recovered
end

local function remember(sha, count, returns, recovered)
  redis.call('HSET', attempts, sha, string.format('%d', count) .. returns .. recovered)
  redis.call('EXPIRE', attempts, ATTEMPTS_KEPT_S)
end

-- Write down how the delivery `tag` ended: count 1 counts it, beside the one before it that its mark has counted; died
-- says that nobody knows.
local function account(tag, sha, count, died)
  local counted, returns, recovered = past(sha)
  redis.call('HDEL', attempts, tag)
  if count == 1 then
    counted, recovered = counted + 1, ''
  end
  remember(sha, counted, returns, died and 'r' or recovered)
end

-- Back to the front of the list it came from. Pushed before it is dropped: an error in between (memory,
-- type of the list key) leaves it reserved.
local function restore(tag, count, died)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  local _, _, step = split_tag(tag)
  redis.call('RPUSH', list_key(queue, step), raw)
  drop(tag)
  account(tag, redis.sha1hex(raw), count, died)
  return 1
end
