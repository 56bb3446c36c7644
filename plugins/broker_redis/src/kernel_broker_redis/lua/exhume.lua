-- Take letters out of the dead letters of a queue: put them back at the end of their list, or delete them.
--
-- KEYS  dead zset, dead hash of envelopes, dead hash of infos
-- ARGV  key of the queue's list, sep, priority steps as " 0 3 6 9 ", 1 to put back or 0 to delete, id...
-- reply number of letters found

local dead, messages, infos = KEYS[1], KEYS[2], KEYS[3]
local list, sep, steps, is_replay = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

-- The list it came from; the first one where that is not known, or nobody reads it any more.
local function list_of(id)
  local step = string.match(redis.call('HGET', infos, id) or '', '"step": (%d+)}$')
  if not step or step == '0' or not string.find(steps, ' ' .. step .. ' ', 1, true) then
    return list
  end
  return list .. sep .. step
end

local found = 0
for i = 5, #ARGV do
  local id = ARGV[i]
  local raw = redis.call('HGET', messages, id)
  if raw then
    if is_replay then -- pushed before it is deleted: an error in between leaves it dead
      redis.call('LPUSH', list_of(id), raw)
    end
    found = found + 1
  end
  redis.call('HDEL', messages, id)
  redis.call('HDEL', infos, id)
  redis.call('ZREM', dead, id)
end
return found
