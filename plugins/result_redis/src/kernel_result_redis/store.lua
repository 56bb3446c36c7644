-- Store task states and tell those who wait. A SUCCESS is never replaced by another state.
--
-- KEYS  celery-task-meta-<task id>, ...
-- ARGV  per key: "1" if the state is SUCCESS, milliseconds to keep it ("0" for ever), the task meta as JSON
-- reply number stored

-- Celery writes the status first; other writers' JSON is decoded.
local function has_succeeded(meta)
  local status = string.match(meta, '^%s*{%s*"status"%s*:%s*"(%u+)"')
  if status then
    return status == 'SUCCESS'
  end
  local ok, decoded = pcall(cjson.decode, meta)
  return ok and type(decoded) == 'table' and decoded.status == 'SUCCESS'
end

local stored = 0
for i, key in ipairs(KEYS) do
  local is_success, keep_ms, meta = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  -- pcall: a key of another type is replaced as SET does, else one such id would keep all results with it from being stored
  local before = is_success ~= '1' and redis.pcall('GET', key)
  if not (type(before) == 'string' and has_succeeded(before)) then
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
