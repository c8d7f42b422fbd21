--[[
Extends leases.

KEYS     see core
ARGV[4]  lease in ms
ARGV[5…] id, token, fence of each held job

Returns  two lists of ids: lost, cancelled
]]
local base = queue_place(QUEUE)
local lease = tonumber(ARGV[4])
local lost, cancelled = {}, {}
local ids, locks = {}, {}
for at = 5, #ARGV, 3 do
  local n = #ids + 1
  ids[n], locks[n] = at, base.k .. ARGV[at] .. ':lock'
end
local renewed = {}

local function renew(id, token, fence, holder, p)
  local key = p.k .. id
  local lock = key .. ':lock'
  local h = call('HMGET', key, 'ats', 'wm:cancel')
  if holder == token and h[1] then
    -- Unlike SET, this is accepted by a server that is full.
    expire(lock, lease)
  elseif not holder and h[1] == fence and call('LPOS', p.active, id) then
    put(lock, token, lease)
  else
    return false
  end
  renewed[p] = renewed[p] or {}
  table.insert(renewed[p], id)
  if h[2] then
    cancelled[#cancelled + 1] = id
  end
  return true
end

for from = 1, #ids, CHUNK do
  local to = min(from + CHUNK - 1, #ids)
  local holders = not GIVEN and call('MGET', unpack(locks, from, to)) or {}
  for i = from, to do
    local id, token, fence = ARGV[ids[i]], ARGV[ids[i] + 1], ARGV[ids[i] + 2]
    local holder = holders[i - from + 1]
    if GIVEN then
      holder = get(locks[i])
    end
    local p = base
    if not holder then
      p = find_job(base, id)
      holder = p and get(p.k .. id .. ':lock')
    end
    if not p or not renew(id, token, fence, holder, p) then
      lost[#lost + 1] = id
    end
  end
end
for p, some in pairs(renewed) do
  for from = 1, #some, CHUNK do
    call('SREM', p.stalled, unpack(some, from, min(from + CHUNK - 1, #some)))
  end
end
return { lost, cancelled }
