--[[
Reads; writes nothing.

KEYS     see core
ARGV[4]  get: ARGV[5] "1" leaves out the data, ARGV[6…] ids
         page: ARGV[5] start, ARGV[6] limit, ARGV[7] "1" newest first, ARGV[8…] states
         counts
         logs: id, start, limit
         children: id, start, limit
         schedules: start, limit, then ids or nothing
         metrics

Returns  get: a record or "" for each; page: total, records; counts: seven numbers in the order of the states, paused
         a record: id, tags, state, due or "", the hash
         logs: total, lines; children: total, and for each: key, state, value or ""
         schedules: for each: id, slot, state of its job or "", the hash
         metrics: for each kind: the hash, the minutes
]]
local base = queue_place(QUEUE)
local WHAT = ARGV[4]

local function record(p, id, state, without)
  local key = p.k .. id
  local ok = redis.pcall('HGETALL', key)
  if ok.err then
    ok = {}
  end
  if without then
    for i = 1, #ok, 2 do
      if ok[i] == 'data' then
        ok[i + 1] = ''
      end
    end
  end
  local due = ''
  if state == 'delayed' then
    due = int(floor(tonumber(call('ZSCORE', p.delayed, id)) / 4096))
  end
  return { id, p.tags, state, due, ok }
end

-- The key of a state's collection, whether it is a list whose tail comes first, and how many are in it.
local function source(p, state)
  if state == 'waiting' then
    return p.wait, true, call('LLEN', p.wait)
  elseif state == 'active' then
    return p.active, true, call('LLEN', p.active)
  end
  local key = state == 'waiting-children' and p.parents or p[state]
  return key, false, call('ZCARD', key)
end

local function range(key, list, from, to)
  if to < from then
    return {}
  end
  if not list then
    return call('ZRANGE', key, from, to)
  end
  local ids = call('LRANGE', key, -to - 1, -from - 1)
  for i = 1, floor(#ids / 2) do
    ids[i], ids[#ids - i + 1] = ids[#ids - i + 1], ids[i]
  end
  return ids
end

-- Where the jobs of one state are, from the first to be claimed or the oldest: [from, to] of the whole queue's list.
local function pick(state, from, to)
  local all = every(base)
  local found = {}
  if #all == 1 or state == 'waiting' or state == 'prioritized' then
    local before = 0
    for _, p in ipairs(all) do
      local key, list, size = source(p, state)
      for _, id in ipairs(range(key, list, max(0, from - before), min(size - 1, to - before))) do
        found[#found + 1] = { p, id }
      end
      before = before + size
    end
    return found
  end
  local merged = {}
  for _, p in ipairs(all) do
    local key, list = source(p, state)
    for _, id in ipairs(range(key, list, 0, to)) do
      local at = list and call('HGET', p.k .. id, 'processedOn') or call('ZSCORE', key, id)
      merged[#merged + 1] = { p, id, tonumber(at) or 0, #merged }
    end
  end
  table.sort(merged, function(a, b)
    if a[3] ~= b[3] then
      return a[3] < b[3]
    end
    return a[4] < b[4]
  end)
  for i = from + 1, min(to + 1, #merged) do
    found[#found + 1] = merged[i]
  end
  return found
end

local function count(state)
  local n = 0
  for _, p in ipairs(every(base)) do
    local _, _, size = source(p, state)
    n = n + size
  end
  return n
end

if WHAT == 'get' then
  local found = {}
  for at = 6, #ARGV do
    local p = find_job(base, ARGV[at])
    found[at - 5] = p and record(p, ARGV[at], state_of(p, ARGV[at]), ARGV[5] == '1') or ''
  end
  return found
elseif WHAT == 'page' then
  local start, limit, turned = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
  local total, items = 0, {}
  for at = 8, #ARGV do
    local state = ARGV[at]
    local size = count(state)
    local skip, room = max(0, start - total), limit - #items
    if skip < size and room > 0 then
      local n = min(room, size - skip)
      local found
      if turned then
        found = pick(state, size - skip - n, size - skip - 1)
        for i = #found, 1, -1 do
          items[#items + 1] = record(found[i][1], found[i][2], state)
        end
      else
        found = pick(state, skip, skip + n - 1)
        for i = 1, #found do
          items[#items + 1] = record(found[i][1], found[i][2], state)
        end
      end
    end
    total = total + size
  end
  return { total, items }
elseif WHAT == 'counts' then
  local STATES = { 'waiting', 'prioritized', 'delayed', 'active', 'completed', 'failed', 'waiting-children' }
  local numbers = {}
  for i = 1, #STATES do
    numbers[i] = count(STATES[i])
  end
  numbers[#STATES + 1] = call('HEXISTS', base.meta, 'paused')
  return numbers
elseif WHAT == 'logs' then
  local p = find_job(base, ARGV[5])
  local start, limit = tonumber(ARGV[6]), tonumber(ARGV[7])
  if not p then
    return { 0, {} }
  end
  local key = p.k .. ARGV[5] .. ':logs'
  return { call('LLEN', key), limit > 0 and call('LRANGE', key, start, start + limit - 1) or {} }
elseif WHAT == 'children' then
  local p = find_job(base, ARGV[5])
  local start, limit = tonumber(ARGV[6]), tonumber(ARGV[7])
  if not p then
    return { 0, {} }
  end
  local key = p.k .. ARGV[5]
  local state = {}
  local keys = {}
  local function note(found, what)
    for i = 1, #found do
      if not state[found[i]] then
        keys[#keys + 1] = found[i]
      end
      state[found[i]] = what
    end
  end
  note(call('HKEYS', key .. ':processed'), 'processed')
  note(call('HKEYS', key .. ':failed'), 'ignored')
  note(call('ZRANGE', key .. ':unsuccessful', 0, -1), 'failed')
  note(call('SMEMBERS', key .. ':dependencies'), 'pending')
  in_order(key, keys)
  local items = {}
  for i = start + 1, min(start + limit, #keys) do
    local child, what = keys[i], state[keys[i]]
    local value = ''
    if what == 'processed' then
      value = call('HGET', key .. ':processed', child)
    elseif what == 'ignored' then
      value = call('HGET', key .. ':failed', child)
    elseif what == 'failed' then
      value = string.match(call('HGET', key, child_field(child)) or '', '^%d*:(.*)$') or call('HGET', child, 'failedReason') or ''
    end
    items[#items + 1] = { child, what, value }
  end
  return { #keys, items }
elseif WHAT == 'schedules' then
  local start, limit = tonumber(ARGV[5]), tonumber(ARGV[6])
  local ids = {}
  if limit >= 0 then
    ids = limit > 0 and call('ZRANGE', base.k .. 'repeat', start, start + limit - 1) or {}
  else
    for at = 7, #ARGV do
      ids[#ids + 1] = ARGV[at]
    end
  end
  local found = {}
  for _, id in ipairs(ids) do
    local slot = call('ZSCORE', base.k .. 'repeat', id)
    local h = slot and call('HGETALL', base.k .. 'repeat:' .. id)
    if slot and #h > 0 then
      slot = int(tonumber(slot))
      local job = 'repeat:' .. id .. ':' .. slot
      local p = find_job(base, job)
      found[#found + 1] = { id, slot, p and state_of(p, job) or '', h }
    end
  end
  return found
end
local kinds = {}
for i, kind in ipairs({ 'completed', 'failed' }) do
  local key = base.k .. 'metrics:' .. kind
  kinds[i] = { call('HGETALL', key), call('LRANGE', key .. ':data', 0, -1), NOW }
end
return kinds
