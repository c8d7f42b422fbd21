--[[
Acquires, extends or releases a named lock; the locks of a store are one hash: "l:" name to "until:fence:owner".

KEYS[1]  the hash
ARGV[1]  the instant in ms, or "" for the server's clock
ARGV[2]  name
ARGV[3]  owner
ARGV[4]  ms; 0 releases
ARGV[5]  fence, or "" to acquire

Returns  the fence, or -1
]]
local call = redis.call
local now
if ARGV[1] ~= '' then
  now = tonumber(ARGV[1])
else
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local field, ms = 'l:' .. ARGV[2], tonumber(ARGV[4])
local stored = call('HGET', KEYS[1], field)
local till, fence, owner = string.match(stored or '', '^(%d+):(%d+):(.*)$')
if till and tonumber(till) <= now then
  owner = nil
end
if owner == ARGV[3] and (ARGV[5] == '' or ARGV[5] == fence) then
  if ms > 0 then
    call('HSET', KEYS[1], field, string.format('%.0f', now + ms) .. ':' .. fence .. ':' .. owner)
  else
    call('HDEL', KEYS[1], field)
  end
  return tonumber(fence)
end
if owner or ARGV[5] ~= '' or ms <= 0 then
  return -1
end
-- One count for all names outlives every lock, so that a name's fences only grow.
fence = call('HINCRBY', KEYS[1], 'fence', 1)
call('HSET', KEYS[1], field, string.format('%.0f', now + ms) .. ':' .. string.format('%.0f', fence) .. ':' .. ARGV[3])
-- Now and then those that ran out are swept away.
if fence % 64 == 0 and call('HLEN', KEYS[1]) < 10000 then
  local all = call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local ends = tonumber(string.match(all[i + 1], '^(%d+):') or '')
    if ends and ends <= now then
      call('HDEL', KEYS[1], all[i])
    end
  end
end
return fence
