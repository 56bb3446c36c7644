-- Prelude of the scripts that take an entry out of `unacked`. Not a script of its own.
--
-- An entry written by fetch.lua:
--   unacked        hash   tag -> [<envelope>, "", "<queue>"]      (kombu's form, default JSON separators)
--   unacked_index  zset   tag, score = server time of the reserve or of the last renewal
--   tag                   kw|<identity of the holder>|<serial>|<priority step>
--   kw.attempts    hash   sha1 of the envelope -> deliveries that ended in a lost executor. An entry, even
--                         a 0, says that the message was restored.

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

-- Back to the front of the list it came from. Pushed before it is dropped: an error in between (memory,
-- type of the list key) leaves it reserved.
local function restore(tag, count)
  local queue, raw = take(tag)
  if not queue then
    return 0
  end
  local _, _, step = split_tag(tag)
  local sha = redis.sha1hex(raw)
  redis.call('RPUSH', list_key(queue, step), raw)
  drop(tag)
  redis.call('HINCRBY', attempts, sha, count)
  redis.call('EXPIRE', attempts, ATTEMPTS_KEPT_S)
  return 1
end
