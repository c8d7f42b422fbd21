--[[
Settles outcomes in their order, makes due jobs ready, then claims.

KEYS      see core
ARGV[4]   token
ARGV[5]   worker
ARGV[6]   how many to claim
ARGV[7]   lease in ms
ARGV[8]   the worker's tags, joined by "+"
ARGV[9]   the worker's rate: max, ARGV[10] window in ms; or "" twice
ARGV[11]  minutes of metrics to keep
ARGV[12]  "1": first return what is active under the token
ARGV[13]  how many outcomes
ARGV[14…] each: kind, id, token, fence, and by kind:
          c completed: result, keep   f failed: reason, trace or "", keep   r retry: delay, reason, trace or ""
          s snooze: delay             l release: -                          w wait for children: child or "", any ("1")
          keep: "count:age:limit", each part may be empty; or ""

Returns   now, paused, wake_at or "", version of a foreign peer or "",
          codes: 0 ok, 1 missing, 2 already, 3 lease lost, 4 pending, 5 a child failed, 6 nothing pending
          jobs: for each one text: lengths with commas between, a line end, and so long pieces: tags, id, start number or "",
          and the fields and values of its hash as they were before this start
]]
local OK, MISSING, ALREADY, LOST, PENDING, CHILD_FAILED, NOTHING = 0, 1, 2, 3, 4, 5, 6
local TOKEN, WORKER, TAKE, LEASE = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local METRICS = tonumber(ARGV[11])
local base = queue_place(QUEUE)
local others = tagged(base)
local changed = false

-- settling

local WIDTH = { c = 6, f = 7, r = 7, s = 5, l = 4, w = 6 }
local outcomes = {}
do
  local at = 14
  for i = 1, tonumber(ARGV[13]) do
    local kind = ARGV[at]
    outcomes[i] = at
    at = at + WIDTH[kind]
  end
end

-- Most jobs have no children and a lease that holds: two calls tell for all of them.
local tokens, any_children = {}, false
if #outcomes > 0 then
  local locks, sets = {}, {}
  for i = 1, #outcomes do
    local key = base.k .. ARGV[outcomes[i] + 1]
    locks[i] = key .. ':lock'
    sets[2 * i - 1], sets[2 * i] = key .. ':dependencies', key .. ':unsuccessful'
  end
  if not GIVEN then
    local found = call('MGET', unpack(locks))
    for i = 1, #outcomes do
      tokens[locks[i]] = found[i]
    end
  end
  any_children = #others > 0 or call('EXISTS', unpack(sets)) > 0
end

local NEEDED = { 'name', 'ats', 'atm', 'parentKey', 'deid', 'wm:cancel' }
local MORE = { 'parent', 'opts', 'wm:attempts', 'wm:lifo', 'priority' }
local settled_keys = {}
local keeps, keep_order = { completed = {}, failed = {} }, {}
local completed, failed = 0, 0

local function parse_keep(text)
  local count, age, limit = string.match(text, '^(%d*):(%d*):(%d*)$')
  return tonumber(count), tonumber(age), tonumber(limit)
end

local function keeps_none(keep)
  return sub(keep, 1, 2) == '0:'
end

local function find_hash(id)
  local key = base.k .. id
  local h = call('HMGET', key, unpack(NEEDED))
  if h[1] then
    return base, key, h
  end
  for i = 1, #others do
    key = others[i].k .. id
    h = call('HMGET', key, unpack(NEEDED))
    if h[1] then
      return others[i], key, h
    end
  end
  return nil
end

local function leads_to(kind, state)
  if kind == 'c' then
    return state == 'completed'
  elseif kind == 'f' then
    return state == 'failed'
  end
  return not has_ended(state)
end

local function put_off(p, id, key, more, delay, ...)
  if delay > 0 then
    call('HSET', key, 'delay', int(delay), ...)
    put_delayed(p, id, now + delay)
    emit(p, 'delayed', 'jobId', id, 'delay', int(now + delay))
  else
    if select('#', ...) > 0 then
      call('HSET', key, ...)
    end
    queue_up(p, id, tonumber(more.priority) or 0, is_lifo(more['wm:lifo'], more.opts))
    emit(p, 'waiting', 'jobId', id, 'prev', 'active')
  end
end

local function retain(p, id, key, state, keep, parent_key)
  if keep == '' then
    return
  end
  if keeps_none(keep) then
    call('ZREM', p[state], id)
    delete_keys(p, id)
    -- Only a child whose failure means nothing to its parent still pends there.
    if state == 'failed' then
      child_gone(p, id, parent_key, false)
    end
  else
    local of_state = keeps[state]
    if not of_state[keep] then
      of_state[keep] = true
      keep_order[#keep_order + 1] = { state, keep }
    end
  end
end

local function settle(at)
  local kind, id, token, fence = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local p, key, h = find_hash(id)
  if not p then
    return MISSING
  end
  local lock = key .. ':lock'
  local holder = false
  if not settled_keys[key] then
    holder = tokens[lock]
    if holder == nil then
      holder = get(lock)
    end
  end
  if holder and holder ~= token then
    return LOST
  end
  local same_run = h[2] == fence
  if not holder and not (same_run and not settled_keys[key] and call('LPOS', p.active, id)) then
    return same_run and leads_to(kind, state_of(p, id)) and ALREADY or LOST
  end

  if any_children and (kind == 'c' or kind == 'w') and call('ZCARD', key .. ':unsuccessful') > 0 then
    return CHILD_FAILED
  end
  if kind == 'c' then
    if any_children and pending(key) > 0 then
      return PENDING
    end
  elseif kind == 'w' then
    local any = ARGV[at + 5] == '1'
    local waits_on = any and pending(key) > 0
    if not any then
      for _, child in ipairs(call('SMEMBERS', key .. ':dependencies')) do
        local _, child_id = split(child)
        waits_on = waits_on or child_id == ARGV[at + 4]
      end
    end
    if not waits_on then
      return NOTHING
    end
  end

  if call('LREM', p.active, -1, id) == 0 then
    -- The lease outlived the job's place: somebody moved it by hand.
    drops[#drops + 1] = lock
    return same_run and leads_to(kind, state_of(p, id)) and ALREADY or LOST
  end
  changed = true
  settled_keys[key] = true
  stop(p, id, h[6])
  local attempts = (tonumber(h[3]) or 0) + 1
  local parent_key, dedup = h[4], h[5]

  if kind == 'c' then
    local result, keep = ARGV[at + 4], ARGV[at + 5]
    completed = completed + 1
    if dedup then
      free_key(p, id, dedup)
    end
    if parent_key then
      child_completed(key, parent_key, result)
    end
    emit(p, 'completed', 'jobId', id, 'returnvalue', result, 'prev', 'active')
    if keeps_none(keep) then
      delete_keys(p, id)
    else
      call('HSET', key, 'atm', int(attempts), 'returnvalue', result, 'finishedOn', NOW)
      enter(p, id)
      retain(p, id, key, 'completed', keep)
    end
    return OK
  end

  local more = fields_of(key, MORE)
  if kind == 'f' then
    failed = failed + 1
    more.parentKey, more.deid = parent_key or nil, dedup or nil
    fail(p, id, more, ARGV[at + 4], ARGV[at + 5], attempts, 'active')
    retain(p, id, key, 'failed', ARGV[at + 6], parent_key)
  elseif kind == 'r' then
    local fields = { 'atm', int(attempts), 'failedReason', ARGV[at + 5] }
    if ARGV[at + 6] ~= '' then
      fields[5], fields[6] = 'stacktrace', ARGV[at + 6]
    end
    put_off(p, id, key, more, tonumber(ARGV[at + 4]), unpack(fields))
  elseif kind == 's' then
    put_off(p, id, key, more, tonumber(ARGV[at + 4]))
  elseif kind == 'l' then
    put_in_front(p, id, tonumber(more.priority) or 0)
    emit(p, 'waiting', 'jobId', id, 'prev', 'active')
  else
    put_now(p, p.parents, id)
    emit(p, 'waiting-children', 'jobId', id, 'prev', 'active')
  end
  return OK
end

-- One number a minute, the newest first; what a long silence pushed out is not remembered.
local function count_ended(kind, n)
  local key = base.k .. 'metrics:' .. kind
  local before = call('HINCRBY', key, 'count', n) - n
  local kept = call('HMGET', key, 'prevTS', 'prevCount', 'wm:kept')
  if kept[3] ~= int(METRICS) then
    call('HSET', key, 'wm:kept', int(METRICS))
  end
  local since = tonumber(kept[1])
  if not since then
    call('HSET', key, 'prevTS', NOW, 'prevCount', int(before))
    return
  end
  local minutes = floor(now / 60000) - floor(since / 60000)
  if minutes <= 0 then
    return
  end
  local data = key .. ':data'
  local numbers = {}
  if minutes <= METRICS then
    numbers[1] = int(before - (tonumber(kept[2]) or 0))
  end
  for i = #numbers + 1, min(minutes, METRICS) do
    numbers[i] = '0'
  end
  for from = 1, #numbers, CHUNK do
    call('LPUSH', data, unpack(numbers, from, min(from + CHUNK - 1, #numbers)))
  end
  call('LTRIM', data, 0, METRICS - 1)
  call('HSET', key, 'prevTS', NOW, 'prevCount', int(before))
end

local codes = {}
for i = 1, #outcomes do
  codes[i] = settle(outcomes[i])
end
enter_all()
drop_leases()
if METRICS > 0 then
  if completed > 0 then
    count_ended('completed', completed)
  end
  if failed > 0 then
    count_ended('failed', failed)
  end
end
for i = 1, #keep_order do
  local count, age, limit = parse_keep(keep_order[i][2])
  trim(base, keep_order[i][1], count, age and now - age, limit or CHUNK)
end

-- due jobs

do
  local most = 2 * TAKE + 100
  local all = every(base)
  for i = 1, #all do
    local moved = promote(all[i], most)
    most = most - moved
    changed = changed or moved > 0
  end
end

-- claiming

local s = settings(base)
local jobs = {}

-- One text is read by the client in a fraction of the time of so many.
local function bring(p, id, start, h)
  local lengths = { TEXT[#p.tags], TEXT[#id], TEXT[#start] }
  for i = 1, #h do
    lengths[i + 3] = TEXT[#h[i]]
  end
  jobs[#jobs + 1] = table.concat(lengths, ',') .. '\n' .. p.tags .. id .. start .. table.concat(h)
end

if ARGV[12] == '1' then
  for _, p in ipairs(every(base)) do
    local ids = call('LRANGE', p.active, 0, -1)
    for i = #ids, 1, -1 do
      local lock = p.k .. ids[i] .. ':lock'
      if get(lock) == TOKEN then
        put(lock, TOKEN, LEASE)
        call('SREM', p.stalled, ids[i])
        local h = call('HGETALL', p.k .. ids[i])
        bring(p, ids[i], '', h)
      end
    end
  end
end

local function wanted_places()
  if ARGV[8] == '' then
    return { base }
  end
  local wanted, found = {}, {}
  for tag in string.gmatch(ARGV[8], '[^+]+') do
    wanted[tag] = true
  end
  for i = 1, #others do
    for tag in string.gmatch(others[i].tags, '[^+]+') do
      if wanted[tag] then
        found[#found + 1] = others[i]
        break
      end
    end
  end
  return found
end

local function claimable(p)
  return call('LLEN', p.wait) + call('ZCARD', p.prioritized)
end

local limiter = base.k .. 'limiter'
local rate_max = s.max or tonumber(ARGV[9])
local window = tonumber(ARGV[10]) or s.duration
local used, left = 0, ttl(limiter)
if left > 0 then
  used = tonumber(call('GET', limiter)) or 0
end

local function closed()
  return left > 0 and used >= (rate_max or MANUAL)
end

-- A list entry without a hash, or one that is no job: parked, so that the queue goes on.
local function park(p, id)
  local key = p.k .. id
  local set = redis.pcall('HSET', key, 'failedReason', 'stored job is missing or damaged')
  if type(set) == 'table' and set.err then
    call('DEL', key)
    call('HSET', key, 'failedReason', 'stored job is missing or damaged')
  end
  call('HSETNX', key, 'name', 'unknown')
  call('HSETNX', key, 'data', '{}')
  call('HSETNX', key, 'opts', '{}')
  call('HSETNX', key, 'timestamp', NOW)
  call('HSET', key, 'finishedOn', NOW)
  put_now(p, p.failed, id)
  emit(p, 'failed', 'jobId', id, 'failedReason', 'stored job is missing or damaged', 'prev', 'active')
end

local started = {}

local function start(p, id)
  local key = p.k .. id
  local h = redis.pcall('HGETALL', key)
  local name, fence, deferred = false, 0, false
  if not h.err then
    for i = 1, #h, 2 do
      local field = h[i]
      if field == 'name' then
        name = true
      elseif field == 'ats' then
        fence = tonumber(h[i + 1]) or 0
      elseif field == 'defa' then
        deferred = true
      end
    end
  end
  if not name then
    park(p, id)
    return
  end
  fence = int(fence + 1)
  put(key .. ':lock', TOKEN, LEASE)
  call('HSET', key, 'processedOn', NOW, 'pb', WORKER, 'ats', fence)
  -- The order of starting, in case jobs of several sets of tags are taken back together.
  number(p, id, 1)
  emit(p, 'active', 'jobId', id, 'prev', 'waiting')
  local ids = started[p]
  if not ids then
    ids = {}
    started[p] = ids
  end
  ids[#ids + 1] = id
  bring(p, id, fence, h)
  if rate_max and not deferred then
    used = call('INCR', limiter)
    if used == 1 then
      left = window
      expire(limiter, window)
    end
  end
end

local function take_some(p, room)
  local taken = 0
  while taken < room do
    local ids = call('RPOP', p.wait, min(room - taken, CHUNK))
    if not ids or #ids == 0 then
      break
    end
    for i = 1, #ids do
      -- Markers of old versions stand in lists.
      if sub(ids[i], 1, 2) ~= '0:' then
        start(p, ids[i])
        taken = taken + 1
      end
    end
  end
  if taken < room then
    local found = call('ZPOPMIN', p.prioritized, room - taken)
    for i = 1, #found, 2 do
      start(p, found[i])
    end
    taken = taken + #found / 2
  end
  if taken < room then
    call('DEL', p.pc)
  end
end

-- The place where the job lies that goes first of all.
local function best(choice)
  local found, priority, seq
  for _, p in ipairs(choice) do
    local id = call('LINDEX', p.wait, -1)
    local its = 0
    if not id then
      local first = call('ZRANGE', p.prioritized, 0, 0, 'WITHSCORES')
      id = first[1]
      its = id and floor(tonumber(first[2]) / FRONT)
    end
    if id then
      local n = tonumber(call('HGET', p.k .. id, 'wm:seq')) or 0
      if not found or its < priority or (its == priority and n < seq) then
        found, priority, seq = p, its, n
      end
    end
  end
  return found
end

local choice = {}
if TAKE > 0 and not s.paused and not closed() then
  local room = TAKE - #jobs
  if s.concurrency then
    room = min(room, s.concurrency - total_active(base))
  end
  if room > 0 then
    choice = wanted_places()
    if #choice == 1 and not rate_max then
      take_some(choice[1], room)
    else
      while room > 0 and not closed() do
        local p = best(choice)
        if not p then
          break
        end
        take_some(p, 1)
        room = room - 1
      end
    end
    for p, ids in pairs(started) do
      for from = 1, #ids, CHUNK do
        call('LPUSH', p.active, unpack(ids, from, min(from + CHUNK - 1, #ids)))
      end
      changed = true
    end
  end
end

-- what comes next

local all = every(base)
local ready, due = 0, nil
for i = 1, #all do
  local p = all[i]
  local n = claimable(p)
  ready = ready + n
  local first = next_due(p)
  due = first and min(first, due or first) or due
  if changed and not s.paused then
    if n > 0 then
      p.rung = true
    elseif first and #jobs > 0 then
      -- Who took the last marker works now; let somebody else watch the clock.
      p.late = true
    end
  end
  if n == 0 then
    p.rung = false
  end
end
if completed + failed > 0 and ready == 0 and not (TAKE > 0 and due) and total_active(base) == 0 then
  emit(base, 'drained')
end
if closed() then
  for i = 1, #all do
    all[i].rung = false
  end
  if ready > 0 then
    due = min(due or now + left, now + left)
  end
end
wake()

local version = s.version
if version and (sub(version, 1, 9) == 'bullmq:6.' or sub(version, 1, 7) ~= 'bullmq:') then
  version = false
end
return { NOW, s.paused and 1 or 0, due and int(due) or '', version or '', codes, jobs }
