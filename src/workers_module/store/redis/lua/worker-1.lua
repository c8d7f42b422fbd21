--[[
Tells of a worker, or leaves it an order; one hash: "w:" id to "until:" and JSON, "o:" id to the order.

KEYS[1]  the hash
ARGV[1]  the instant in ms, or "" for the server's clock
ARGV[2]  beat or order
ARGV[3]  id
ARGV[4]  beat: ms, 0 says goodbye; order: the order
ARGV[5]  beat: what the worker tells of itself, JSON

Returns  a beat: the order left for it, or ""
]]
local call = redis.call
local now
if ARGV[1] ~= '' then
  now = tonumber(ARGV[1])
else
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local id = ARGV[3]
if ARGV[2] == 'order' then
  -- An order for a worker unknown here is lost.
  if call('HEXISTS', KEYS[1], 'w:' .. id) == 1 then
    call('HSET', KEYS[1], 'o:' .. id, ARGV[4])
  end
  return ''
end
local all = call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ends = string.match(all[i + 1], '^(%d+):')
  if string.sub(all[i], 1, 2) == 'w:' and tonumber(ends) <= now then
    local gone = string.sub(all[i], 3)
    call('HDEL', KEYS[1], all[i], 'o:' .. gone)
  end
end
local ms = tonumber(ARGV[4])
if ms > 0 then
  local stamp = string.format('%.0f', now + ms) .. ':' .. string.format('%.0f', now) .. ':'
  call('HSET', KEYS[1], 'w:' .. id, stamp .. ARGV[5])
else
  call('HDEL', KEYS[1], 'w:' .. id)
end
local order = call('HGET', KEYS[1], 'o:' .. id)
call('HDEL', KEYS[1], 'o:' .. id)
return order or ''
