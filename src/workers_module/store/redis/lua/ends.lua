--[[
Ending many jobs at once: the sets of those that ended, the leases of those that ran, and how many are kept.
]]
-- A set scored by the plain millisecond: a fraction below one, in 4096ths, keeps the order within it.
local function score_now(p, key)
  p.last = p.last or {}
  local n = p.last[key]
  if not n then
    local last = call('ZREVRANGEBYSCORE', key, '(' .. int(now + 1), NOW, 'WITHSCORES', 'LIMIT', 0, 1)
    n = last[2] and floor((tonumber(last[2]) - now) * 4096 + 0.5) or -1
  end
  n = min(n + 1, 4095)
  p.last[key] = n
  -- Four digits tell one 4096th from the next, and are written in a fraction of the time that all of them take.
  return NOW .. fmt('.%04d', n * 10000 / 4096 + 0.5)
end

local function put_now(p, key, id)
  call('ZADD', key, score_now(p, key), id)
end

-- Completed jobs are entered together: when somebody looks, or at the end.
local entered = {}

local function enter(p, id)
  local n = #entered
  if n > 0 and entered.key ~= p.completed then
    call('ZADD', entered.key, unpack(entered))
    entered, n = {}, 0
  end
  entered.key = p.completed
  entered[n + 1], entered[n + 2] = score_now(p, p.completed), id
end

local function enter_all()
  if #entered > 0 then
    call('ZADD', entered.key, unpack(entered))
    entered = {}
  end
end

-- Takes an active job out of its list; its lease and the sweeps' notes on it go at the end, with those of others.
local drops, unstalls = {}, {}

local function stop(p, id, cancelled)
  drops[#drops + 1] = p.k .. id .. ':lock'
  local ids = unstalls[p.stalled]
  if not ids then
    ids = {}
    unstalls[p.stalled] = ids
  end
  ids[#ids + 1] = id
  if cancelled then
    call('HDEL', p.k .. id, 'wm:cancel')
  end
end

local function drop_leases()
  for i = 1, #drops, CHUNK do
    call('DEL', unpack(drops, i, min(i + CHUNK - 1, #drops)))
  end
  for key, ids in pairs(unstalls) do
    for i = 1, #ids, CHUNK do
      call('SREM', key, unpack(ids, i, min(i + CHUNK - 1, #ids)))
    end
  end
  drops, unstalls = {}, {}
end

local function delete_keys(p, id)
  local j = p.k .. id
  call('UNLINK', j, j .. ':logs', j .. ':dependencies', j .. ':processed', j .. ':failed', j .. ':unsuccessful')
end

local child_gone

-- Retention: removes the oldest of a queue's ended jobs that are too many (count) or ended at or before an instant.
local function trim(b, state, count, before, limit)
  enter_all()
  local all = every(b)
  local size, old = 0, 0
  for i = 1, #all do
    if count then
      size = size + call('ZCARD', all[i][state])
    end
    if before then
      old = old + call('ZCOUNT', all[i][state], '-inf', '(' .. int(before + 1))
    end
  end
  local n = min(max(count and size - count or 0, old), limit)
  if n <= 0 then
    return 0
  end
  local ids, place_of = {}, nil
  if #all == 1 then
    ids = call('ZRANGE', b[state], 0, n - 1)
    call('ZREMRANGEBYRANK', b[state], 0, n - 1)
  else
    local chosen = {}
    place_of = {}
    for _, p in ipairs(all) do
      local found = call('ZRANGE', p[state], 0, n - 1, 'WITHSCORES')
      for i = 1, #found, 2 do
        chosen[#chosen + 1] = { p, found[i], tonumber(found[i + 1]), #chosen }
      end
    end
    table.sort(chosen, function(a, c)
      if a[3] ~= c[3] then
        return a[3] < c[3]
      end
      return a[4] < c[4]
    end)
    for i = 1, min(n, #chosen) do
      place_of[i], ids[i] = chosen[i][1], chosen[i][2]
      call('ZREM', place_of[i][state], ids[i])
    end
  end
  local gone, g = {}, 0
  for i = 1, #ids do
    local p = place_of and place_of[i] or b
    local j = p.k .. ids[i]
    -- A completed child is on no list of pending ones.
    local parent_key = state == 'failed' and call('HGET', j, 'parentKey')
    if parent_key then
      child_gone(p, ids[i], parent_key, false)
    end
    gone[g + 1], gone[g + 2], gone[g + 3] = j, j .. ':logs', j .. ':dependencies'
    gone[g + 4], gone[g + 5], gone[g + 6] = j .. ':processed', j .. ':failed', j .. ':unsuccessful'
    g = g + 6
    if g >= 3000 then
      call('UNLINK', unpack(gone))
      gone, g = {}, 0
    end
  end
  if g > 0 then
    call('UNLINK', unpack(gone))
  end
  return #ids
end
