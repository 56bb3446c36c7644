-- Reserve messages: one atomic step, so that a crash at any moment loses none.
--
-- KEYS  unacked, unacked_index, kw.holders, kw.attempts
-- ARGV  prefix, sep, identity, lease, limit, serial, max_bytes, budget, steps, step..., queue...
-- reply { {seconds to the next parked message or '', seconds to the first lease that ends},
--         {serial, what kw.attempts holds, ...} of restored messages, {queue, too large messages, ...}, errors,
--         {queue index, step, first serial, {envelope, ...}}, ... }

local unacked, index, holders, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, sep, identity = ARGV[1], ARGV[2], ARGV[3]
local lease, limit, serial = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_bytes, budget, steps = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local first_step, first_queue = 10, 10 + steps
local call = redis.call

local time = call('TIME')
local now = time[1] + time[2] / 1000000
local stamp = string.format('%.6f', now)

-- Everything that can refuse comes before the first pop: wrong types of keys here, and with the first
-- write a full memory or a read-only replica. A script that fails after a pop would lose the message.
call('HLEN', unacked)
call('ZCARD', index)
local any_restored = call('HLEN', attempts) > 0
call('ZADD', holders, string.format('%.6f', now + lease), identity)
local first_deadline = call('ZRANGE', holders, 0, 0, 'WITHSCORES')[2] - now

local function list_key(queue, step)
  if step == '0' then
    return prefix .. queue
  end
  return prefix .. queue .. sep .. step
end

local errors = {}

-- Parked messages that are due go to the front of their list; the earliest last, so that it is next.
local function unpark(queue)
  local parked, bodies = prefix .. 'kw.parked:' .. queue, prefix .. 'kw.parked.msg:' .. queue
  local due = call('ZRANGE', parked, '-inf', stamp, 'BYSCORE', 'LIMIT', 0, math.min(limit, 1000))
  for i = #due, 1, -1 do
    local id = due[i]
    local raw = call('HGET', bodies, id)
    if raw then
      local pushed = redis.pcall('RPUSH', list_key(queue, string.match(id, '|(%d+)$')), raw)
      if type(pushed) == 'table' and pushed.err then
        errors[#errors + 1] = pushed.err
        return
      end
    end
    call('ZREM', parked, id)
    call('HDEL', bodies, id)
  end
end

-- Too large to be handed out: kept where a person finds it, without crossing the network. Where that fails
-- (keys of another type) the message goes back and nothing more is popped.
local buried = {}
local function bury(queue, step, raw, id)
  local info = string.format(
    '{"reason": "message of %d bytes is larger than the limit of %d bytes", "died_at": %s, "attempts": 0, "step": %s}',
    #raw, max_bytes, stamp, step)
  for _, command in ipairs({
    {'HSET', prefix .. 'kw.dead.msg:' .. queue, id, raw},
    {'HSET', prefix .. 'kw.dead.info:' .. queue, id, info},
    {'ZADD', prefix .. 'kw.dead:' .. queue, stamp, id},
  }) do
    local reply = redis.pcall(unpack(command))
    if type(reply) == 'table' and reply.err then
      errors[#errors + 1] = reply.err
      call('RPUSH', list_key(queue, step), raw)
      limit = 0
      return
    end
  end
  buried[#buried + 1] = queue
  buried[#buried + 1] = #raw
end

local counts, groups = {}, {}
local head = 'kw|' .. identity .. '|'
local bytes = 0

-- Register one page of messages as unacked; gives those that are handed out.
local function reserve(page, queue, step)
  local entries, scores, kept, n, k = {}, {}, {}, 0, 0
  local tail, suffix = '|' .. step, ', "", "' .. queue .. '"]'
  for _, raw in ipairs(page) do
    bytes = bytes + #raw
    if #raw > max_bytes then
      bury(queue, step, raw, redis.sha1hex(head .. serial .. '.' .. #buried))
    else
      local tag = head .. serial .. tail
      entries[n + 1], entries[n + 2] = tag, '[' .. raw .. suffix
      scores[n + 1], scores[n + 2] = stamp, tag
      n, k = n + 2, k + 1
      kept[k] = raw
      if any_restored then
        local count = call('HGET', attempts, redis.sha1hex(raw))
        if count then
          counts[#counts + 1] = serial
          counts[#counts + 1] = count
        end
      end
      serial = serial + 1
    end
  end
  if k > 0 then
    call('HSET', unacked, unpack(entries))
    call('ZADD', index, unpack(scores))
  end
  return kept, k
end

-- Take from one list until the limit, the budget of bytes or its end. Pages grow from small to large, so
-- that a list of huge messages cannot fill the server's memory with one pop; unpack() allows 7999 values.
local function pop(queue_index, queue, step)
  local key, size = list_key(queue, step), 8
  while limit > 0 and bytes < budget do
    local want = math.min(limit, size)
    local page = redis.pcall('RPOP', key, want)
    if not page then
      return
    end
    if page.err then
      errors[#errors + 1] = page.err
      return
    end
    local first = serial
    local kept, count = reserve(page, queue, step)
    if count > 0 then
      groups[#groups + 1] = {queue_index, step, first, kept}
      limit = math.max(0, limit - count)
    end
    if #page < want then
      return
    end
    if bytes < 65536 * size then
      size = math.min(size * 6, 2000)
    end
  end
end

for q = first_queue, #ARGV do
  unpark(ARGV[q])
end
for s = first_step, first_queue - 1 do
  for q = first_queue, #ARGV do
    pop(q - first_queue, ARGV[q], ARGV[s])
  end
end

local next_due = ''
if #groups == 0 then
  for q = first_queue, #ARGV do
    local earliest = call('ZRANGE', prefix .. 'kw.parked:' .. ARGV[q], 0, 0, 'WITHSCORES')
    if earliest[2] and (next_due == '' or earliest[2] - now < next_due) then
      next_due = earliest[2] - now
    end
  end
end
local reply = {{tostring(next_due), tostring(first_deadline)}, counts, buried, errors}
for i = 1, #groups do
  reply[4 + i] = groups[i]
end
return reply
