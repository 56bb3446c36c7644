-- Give back what holders hold, one page of `unacked_index` per call, and end their leases with the last
-- page. Starts with restoring.lua.
--
-- KEYS  unacked, unacked_index, kw.attempts, kw.holders
-- ARGV  prefix, sep, cursor, page size, died (0 or 1), identity...
--       died 1: what they held may have been running. One that has renewed its lease meanwhile keeps what it still holds.
-- reply next cursor ("0" at the end), number of messages given back

local holders, died = KEYS[4], ARGV[5] == '1'
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local gone = {}
for i = 6, #ARGV do
  local deadline = redis.call('ZSCORE', holders, ARGV[i])
  if not died or not deadline or tonumber(deadline) <= now then
    gone[ARGV[i]] = true
  end
end

local page = redis.call('ZSCAN', index, ARGV[3], 'COUNT', ARGV[4])
local found = {}
for i = 1, #page[2], 2 do
  local holder, serial = split_tag(page[2][i])
  if holder and gone[holder] then
    found[#found + 1] = {tonumber(serial), page[2][i]}
  end
end
-- the last reserved is pushed first, so that the order stays
table.sort(found, function(a, b) return a[1] > b[1] end)
local restored = 0
for _, each in ipairs(found) do
  restored = restored + restore(each[2], 0, died)
end

if page[1] == '0' then
  for holder in pairs(gone) do
    redis.call('ZREM', holders, holder)
  end
end
return {page[1], restored}
