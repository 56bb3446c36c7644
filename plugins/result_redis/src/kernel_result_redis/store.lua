-- Store task states and tell those who wait. A SUCCESS is never replaced by another state, and no final state by a
-- RETRY: the next try may have ended before the one that asked for it.
--
-- KEYS  celery-task-meta-<task id>, ...
-- ARGV  per key: the state, milliseconds to keep it ("0" for ever), the task meta as JSON
-- reply number stored

local kept_from_all = {SUCCESS = true}
local kept_from_retry = {SUCCESS = true, FAILURE = true, REVOKED = true}

-- Celery writes the status first; other writers' JSON is decoded.
local function state_of(meta)
  local status = string.match(meta, '^%s*{%s*"status"%s*:%s*"(%u+)"')
  if status then
    return status
  end
  local ok, decoded = pcall(cjson.decode, meta)
  return ok and type(decoded) == 'table' and decoded.status
end

local stored = 0
for i, key in ipairs(KEYS) do
  local state, keep_ms, meta = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  -- pcall: a key of another type is replaced as SET does, else one such id would keep all results with it from being stored
  local before = state ~= 'SUCCESS' and redis.pcall('GET', key)
  local kept = state == 'RETRY' and kept_from_retry or kept_from_all
  if not (type(before) == 'string' and kept[state_of(before)]) then
    if keep_ms == '0' then
      redis.call('SET', key, meta)
    else
      redis.call('SET', key, meta, 'PX', keep_ms)
    end
    redis.call('PUBLISH', key, meta)
    stored = stored + 1
  end
end
return stored
