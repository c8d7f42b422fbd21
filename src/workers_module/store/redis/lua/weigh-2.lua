--[[
Estimates how much memory a queue takes; writes nothing.

A few jobs of each state, the first and the last ones, stand for all of it.

KEYS     see core
ARGV[4]  how many jobs of each state are weighed at most

Returns  bytes, or -1 where this user may not ask; the state whose jobs take most, or ""; how many they are
]]
local base = queue_place(QUEUE)
local SOME = tonumber(ARGV[4])
local refused = false

local function weigh(key)
  if refused then
    return 0
  end
  local found = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 50)
  if type(found) == 'table' and found.err then
    refused = true
    return 0
  end
  return found or 0
end

local function weigh_job(p, id)
  local j = p.k .. id
  return weigh(j) + weigh(j .. ':logs') + weigh(j .. ':dependencies') + weigh(j .. ':processed')
    + weigh(j .. ':failed') + weigh(j .. ':unsuccessful')
end

local STATES = { 'wait', 'prioritized', 'delayed', 'active', 'completed', 'failed', 'parents' }
local NAMES = { wait = 'waiting', parents = 'waiting-children' }
local bytes, heaviest, most, number = 0, '', 0, 0
local by_state, numbers = {}, {}

for _, p in ipairs(every(base)) do
  bytes = bytes + weigh(p.events)
  for _, state in ipairs(STATES) do
    local list = state == 'wait' or state == 'active'
    local n = call(list and 'LLEN' or 'ZCARD', p[state])
    if n > 0 then
      local read = list and 'LRANGE' or 'ZRANGE'
      local half = floor(SOME / 2)
      local ids = call(read, p[state], 0, n > SOME and half - 1 or SOME - 1)
      if n > SOME then
        for _, id in ipairs(call(read, p[state], -half, -1)) do
          ids[#ids + 1] = id
        end
      end
      local sum = 0
      for i = 1, #ids do
        sum = sum + weigh_job(p, ids[i])
      end
      local taken = weigh(p[state]) + sum / #ids * n
      bytes = bytes + taken
      by_state[state] = (by_state[state] or 0) + taken
      numbers[state] = (numbers[state] or 0) + n
      if by_state[state] > most then
        most, heaviest, number = by_state[state], NAMES[state] or state, numbers[state]
      end
    end
  end
end
return { refused and -1 or floor(bytes), heaviest, number }
