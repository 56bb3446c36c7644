-- Count the entries of `unacked` that belong to a queue, one page per call; envelopes stay in the server.
--
-- KEYS  unacked
-- ARGV  cursor, page size, ending of an entry (two spellings of the queue's name as JSON)
-- reply next cursor ("0" at the end), number found

local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local found = 0
for i = 2, #page[2], 2 do
  for j = 3, 4 do
    if string.sub(page[2][i], -#ARGV[j]) == ARGV[j] then
      found = found + 1
      break
    end
  end
end
return {page[1], found}
