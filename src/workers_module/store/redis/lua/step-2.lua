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
ARGV[13]  how many groups of outcomes that have the first three words in common
ARGV[14…] each: kind, token, keep, how many outcomes, and for each of these id, fence, and by kind:
          c completed: result         C the same, of a job that came as five texts (see below)
          f failed: reason, trace or ""         r retry: delay, reason, trace or ""       s snooze: delay
          l release: -                w wait for children: child or "", any ("1")
          keep, of completed and failed: "count:age:limit", each part may be empty; or ""

Returns   now, paused, wake_at or "", version of a foreign peer or "",
          codes: 0 ok, 1 missing, 2 already, 3 lease lost, 4 pending, 5 a child failed, 6 nothing pending
          jobs: for most five texts among the others (nested lists are dear to write and to read): id, name, data, opts,
          timestamp of one that starts for the first time, and whose hash has nothing else but delay, and priority 0;
          else a list: fields and values of its hash as they were before this start, tags, id, start number or ""
]]
--> ends

local OK, MISSING, ALREADY, LOST, PENDING, CHILD_FAILED, NOTHING = 0, 1, 2, 3, 4, 5, 6
local TOKEN, WORKER, TAKE, LEASE = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local METRICS = tonumber(ARGV[11])
-- A global is looked up by its name each time.
local ARGS, tonumber = ARGV, tonumber
local base = queue_place(QUEUE)
local others = tagged(base)
local changed = false

-- settling

local TEXTS = { C = 3, c = 3, f = 4, r = 5, s = 3, l = 2, w = 4 }
local heads, froms, keys, locks = {}, {}, {}, {}
local count = 0
do
  local head = 14
  for _ = 1, tonumber(ARGS[13]) do
    local texts = TEXTS[ARGS[head]]
    local from = head + 4
    head = from + tonumber(ARGS[head + 3]) * texts
    for at = from, head - 1, texts do
      count = count + 1
      local key = base.k .. ARGS[at]
      heads[count], froms[count], keys[count], locks[count] = from - 4, at, key, key .. ':lock'
    end
  end
end

-- Most jobs have no children and a lease that holds: two calls tell for all of them. And those that end together
-- are mostly neighbours in the list of active ones: a piece of it is read, and written back without them.
local tokens, hashes, tail, window = {}, {}, {}, nil
local any_children = false
local seldom = false
if count > 0 then
  local sets = {}
  for i = 1, count do
    sets[2 * i - 1], sets[2 * i] = keys[i] .. ':dependencies', keys[i] .. ':unsuccessful'
  end
  any_children = #others > 0 or call('EXISTS', unpack(sets)) > 0
  if GIVEN then
    for i = 1, count do
      tokens[i] = get(locks[i])
    end
  else
    tokens = call('MGET', unpack(locks))
  end
  if count > 3 then
    window = call('LRANGE', base.active, -2 * count, -1)
    for i = 1, #window do
      tail[window[i]] = 1
    end
  end
  -- A job that simply ended well, as nearly each one did: without a parent, a deduplication key, a mark.
  local FIRST = { false, '1' }
  local seen = {}
  for i = 1, count do
    local head, key, h = heads[i], keys[i], nil
    local kind = ARGS[head]
    if (kind == 'C' or kind == 'c') and not any_children and tokens[i] == ARGS[head + 1] and not seen[key] then
      if kind == 'C' and call('HLEN', key) == 9 then
        -- The six fields that it had, and the three that its start wrote: nobody has noted anything meanwhile.
        h = FIRST
      else
        h = call('HMGET', key, 'atm', 'ats', 'parentKey', 'deid', 'wm:cancel')
      end
    end
    if h and h[2] and not h[3] and not h[4] and not h[5] then
      hashes[i] = h
    else
      seldom = true
    end
    seen[key] = true
  end
end

local all = every(base)
for i = 1, #all do
  local due = next_due(all[i])
  all[i].due = due
  seldom = seldom or (due and due <= now)
end

local settled_keys = {}
local keeps, keep_order = { completed = {}, failed = {} }, {}
local completed, failed = 0, 0

local function take_out(id)
  if tail[id] == 1 then
    tail[id] = 0
    return true
  end
  return call('LREM', base.active, -1, id) > 0
end

local function note_keep(state, keep)
  if keep ~= '' and not keeps[state][keep] then
    keeps[state][keep] = true
    keep_order[#keep_order + 1] = { state, keep }
  end
end

-- Making these functions takes longer than most calls.
local settle, promote_due
if seldom then
--> moves

  local NEEDED = { 'name', 'ats', 'atm', 'parentKey', 'deid', 'wm:cancel' }
  local MORE = { 'parent', 'opts', 'wm:attempts', 'wm:lifo', 'priority' }

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

  settle = function(i)
    local head, at = heads[i], froms[i]
    local kind, token, keep = string.lower(ARGS[head]), ARGS[head + 1], ARGS[head + 2]
    local id, fence = ARGS[at], ARGS[at + 1]
    local p, key, h = find_hash(id)
    if not p then
      return MISSING
    end
    local lock = key .. ':lock'
    local holder = false
    if not settled_keys[id] then
      if p == base then
        holder = tokens[i]
      else
        holder = get(lock)
      end
    end
    if holder and holder ~= token then
      return LOST
    end
    local same_run = h[2] == fence
    if not holder and not (same_run and not settled_keys[id] and call('LPOS', p.active, id)) then
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
      local any = ARGS[at + 3] == '1'
      local waits_on = any and pending(key) > 0
      if not any then
        for _, child in ipairs(call('SMEMBERS', key .. ':dependencies')) do
          local _, child_id = split(child)
          waits_on = waits_on or child_id == ARGS[at + 2]
        end
      end
      if not waits_on then
        return NOTHING
      end
    end

    local taken
    if p == base then
      taken = take_out(id)
    else
      taken = call('LREM', p.active, -1, id) > 0
    end
    if not taken then
      -- The lease outlived the job's place: somebody moved it by hand.
      drops[#drops + 1] = lock
      return same_run and leads_to(kind, state_of(p, id)) and ALREADY or LOST
    end
    changed = true
    settled_keys[id] = true
    stop(p, id, h[6])
    local attempts = (tonumber(h[3]) or 0) + 1
    local parent_key, dedup = h[4], h[5]
    local none = sub(keep, 1, 2) == '0:'

    if kind == 'c' then
      local result = ARGS[at + 2]
      completed = completed + 1
      if dedup then
        free_key(p, id, dedup)
      end
      if parent_key then
        child_completed(key, parent_key, result)
      end
      emit(p, 'completed', 'jobId', id, 'returnvalue', result, 'prev', 'active')
      if none then
        delete_keys(p, id)
      else
        call('HSET', key, 'atm', int(attempts), 'returnvalue', result, 'finishedOn', NOW)
        enter(p, id)
        note_keep('completed', keep)
      end
      return OK
    end

    local more = fields_of(key, MORE)
    if kind == 'f' then
      failed = failed + 1
      more.parentKey, more.deid = parent_key or nil, dedup or nil
      fail(p, id, more, ARGS[at + 2], ARGS[at + 3], attempts, 'active')
      if none then
        call('ZREM', p.failed, id)
        delete_keys(p, id)
        -- Only a child whose failure means nothing to its parent still pends there.
        child_gone(p, id, parent_key, false)
      else
        note_keep('failed', keep)
      end
    elseif kind == 'r' then
      local fields = { 'atm', int(attempts), 'failedReason', ARGS[at + 3] }
      if ARGS[at + 4] ~= '' then
        fields[5], fields[6] = 'stacktrace', ARGS[at + 4]
      end
      put_off(p, id, key, more, tonumber(ARGS[at + 2]), unpack(fields))
    elseif kind == 's' then
      put_off(p, id, key, more, tonumber(ARGS[at + 2]))
    elseif kind == 'l' then
      put_in_front(p, id, tonumber(more.priority) or 0)
      emit(p, 'waiting', 'jobId', id, 'prev', 'active')
    else
      put_now(p, p.parents, id)
      emit(p, 'waiting-children', 'jobId', id, 'prev', 'active')
    end
    return OK
  end

  promote_due = promote
end


local codes = {}
local events, freed = base.events, unstalls[base.stalled] or {}
unstalls[base.stalled] = freed
for i = 1, count do
  local head, from, h = heads[i], froms[i], hashes[i]
  local id = ARGS[from]
  if not h then
    codes[i] = settle(i)
  elseif not take_out(id) then
    -- The lease outlived the job's place: somebody moved it by hand.
    drops[#drops + 1] = locks[i]
    enter_all()
    codes[i] = h[2] == ARGS[from + 1] and call('ZSCORE', base.completed, id) and ALREADY or LOST
  else
    local result, keep = ARGS[from + 2], ARGS[head + 2]
    settled_keys[id] = true
    drops[#drops + 1] = locks[i]
    freed[#freed + 1] = id
    completed = completed + 1
    if base.trimmed then
      call('XADD', events, '*', 'event', 'completed', 'jobId', id, 'returnvalue', result, 'prev', 'active')
    else
      emit(base, 'completed', 'jobId', id, 'returnvalue', result, 'prev', 'active')
    end
    if sub(keep, 1, 2) == '0:' then
      delete_keys(base, id)
    else
      local attempts = h[1] and int((tonumber(h[1]) or 0) + 1) or '1'
      call('HSET', keys[i], 'atm', attempts, 'returnvalue', result, 'finishedOn', NOW)
      enter(base, id)
      note_keep('completed', keep)
    end
    codes[i] = OK
  end
end
if window and (completed + failed > 0 or changed) then
  local kept, n = {}, 0
  for i = 1, #window do
    if tail[window[i]] == 1 then
      n = n + 1
      kept[n] = window[i]
    end
  end
  if n < #window then
    call('LTRIM', base.active, 0, -#window - 1)
    if n > 0 then
      call('RPUSH', base.active, unpack(kept))
    end
  end
end
enter_all()
drop_leases()
changed = changed or completed > 0

if METRICS > 0 and completed + failed > 0 then
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

  if completed > 0 then
    count_ended('completed', completed)
  end
  if failed > 0 then
    count_ended('failed', failed)
  end
end
for i = 1, #keep_order do
  local most, age, limit = string.match(keep_order[i][2], '^(%d*):(%d*):(%d*)$')
  trim(base, keep_order[i][1], tonumber(most), age ~= '' and now - age, tonumber(limit) or CHUNK)
end

-- due jobs

if seldom then
  local most = 2 * TAKE + 100
  all = every(base)
  for i = 1, #all do
    local p = all[i]
    local moved = promote_due(p, most)
    most = most - moved
    changed = changed or moved > 0
    p.due = next_due(p)
  end
end

-- claiming

local s = settings(base)
local jobs, brought = {}, 0
local read = redis.pcall

if ARGV[12] == '1' then
  for _, p in ipairs(all) do
    local ids = call('LRANGE', p.active, 0, -1)
    for i = #ids, 1, -1 do
      local lock = p.k .. ids[i] .. ':lock'
      if get(lock) == TOKEN then
        put(lock, TOKEN, LEASE)
        call('SREM', p.stalled, ids[i])
        local h = call('HGETALL', p.k .. ids[i])
        local n = #h
        h[n + 1], h[n + 2], h[n + 3] = p.tags, ids[i], ''
        brought = brought + 1
        jobs[brought] = h
      end
    end
  end
end

local limiter = base.k .. 'limiter'
local rate_max = s.max or tonumber(ARGV[9])
local window_ms = tonumber(ARGV[10]) or s.duration
local used, left = 0, ttl(limiter)
if left > 0 then
  used = tonumber(call('GET', limiter)) or 0
end
local closed = left > 0 and used >= (rate_max or MANUAL)

local room = 0
if TAKE > 0 and not s.paused and not closed then
  room = TAKE - brought
  if s.concurrency then
    room = min(room, s.concurrency - total_active(base))
  end
end
local choice = { base }
if room > 0 and ARGV[8] ~= '' then
  local wanted = {}
  choice = {}
  for tag in string.gmatch(ARGV[8], '[^+]+') do
    wanted[tag] = true
  end
  for i = 1, #others do
    for tag in string.gmatch(others[i].tags, '[^+]+') do
      if wanted[tag] then
        choice[#choice + 1] = others[i]
        break
      end
    end
  end
end
local one_by_one = #choice ~= 1 or rate_max

local started = {}
local n_jobs = #jobs
while room > 0 and not closed do
  local p, ids, by = choice[1], false, 1
  if one_by_one then
    -- The place where the job lies that goes first of all.
    local priority, seq
    p = nil
    for _, one in ipairs(choice) do
      local id = call('LINDEX', one.wait, -1)
      local its = 0
      if not id then
        local first = call('ZRANGE', one.prioritized, 0, 0, 'WITHSCORES')
        id = first[1]
        its = id and floor(tonumber(first[2]) / FRONT)
      end
      if id then
        local n = tonumber(call('HGET', one.k .. id, 'wm:seq')) or 0
        if not p or its < priority or (its == priority and n < seq) then
          p, priority, seq = one, its, n
        end
      end
    end
  end
  local most = one_by_one and 1 or min(room, CHUNK)
  if p then
    ids = call('RPOP', p.wait, most)
    if not ids then
      ids, by = call('ZPOPMIN', p.prioritized, most), 2
    end
  end
  if not ids or #ids == 0 then
    if p then
      call('DEL', p.pc)
    end
    break
  end
  local k, begun = p.k, started[p] or {}
  started[p] = begun
  for i = 1, #ids, by do
    local id = ids[i]
    local key = k .. id
    local h = read('HGETALL', key)
    local n = #h
    local fence, deferred, plain = '1', false, false
    if n == 12 and p == base and h[1] == 'name' and h[3] == 'data' and h[5] == 'opts' and h[7] == 'timestamp'
      and h[9] == 'delay' and h[11] == 'priority' and h[12] == '0' then
      plain = true
    else
      local name, starts = false, 0
      for f = 1, n, 2 do
        local field = h[f]
        if field == 'name' then
          name = true
        elseif field == 'ats' then
          starts = tonumber(h[f + 1]) or 0
        elseif field == 'defa' then
          deferred = true
        end
      end
      fence = name and int(starts + 1)
    end
    if fence then
      put(key .. ':lock', TOKEN, LEASE)
      call('HSET', key, 'processedOn', NOW, 'pb', WORKER, 'ats', fence)
      if p ~= base then
        -- The order of starting, in case jobs of several sets of tags are taken back together.
        call('HSET', key, 'wm:seq', call('HINCRBY', base.meta, 'wm:last', 1))
      end
      if p.trimmed then
        call('XADD', p.events, '*', 'event', 'active', 'jobId', id, 'prev', 'waiting')
      else
        emit(p, 'active', 'jobId', id, 'prev', 'waiting')
      end
      begun[#begun + 1] = id
      brought = brought + 1
      room = room - 1
      if plain then
        jobs[n_jobs + 1], jobs[n_jobs + 2], jobs[n_jobs + 3], jobs[n_jobs + 4], jobs[n_jobs + 5] = id, h[2], h[4], h[6], h[8]
        n_jobs = n_jobs + 5
      else
        h[n + 1], h[n + 2], h[n + 3] = p.tags, id, fence
        n_jobs = n_jobs + 1
        jobs[n_jobs] = h
      end
      if rate_max and not deferred then
        used = call('INCR', limiter)
        if used == 1 then
          left = window_ms
          expire(limiter, window_ms)
        end
        closed = left > 0 and used >= rate_max
      end
    elseif sub(id, 1, 2) ~= '0:' then
      -- A list entry without a hash, or one that is no job: parked, so that the queue goes on. (Markers of old versions
      -- stand in lists, too.)
      room = room - 1
      local damaged = 'stored job is missing or damaged'
      local set = read('HSET', key, 'failedReason', damaged)
      if type(set) == 'table' and set.err then
        call('DEL', key)
        call('HSET', key, 'failedReason', damaged)
      end
      call('HSETNX', key, 'name', 'unknown')
      call('HSETNX', key, 'data', '{}')
      call('HSETNX', key, 'opts', '{}')
      call('HSETNX', key, 'timestamp', NOW)
      call('HSET', key, 'finishedOn', NOW)
      put_now(p, p.failed, id)
      emit(p, 'failed', 'jobId', id, 'failedReason', damaged, 'prev', 'active')
    end
  end
end
for p, ids in pairs(started) do
  for from = 1, #ids, CHUNK do
    call('LPUSH', p.active, unpack(ids, from, min(from + CHUNK - 1, #ids)))
    changed = true
  end
end

-- what comes next

local ready, due = 0, nil
for i = 1, #all do
  local p = all[i]
  local n = call('LLEN', p.wait) + call('ZCARD', p.prioritized)
  ready = ready + n
  local first = p.due
  due = first and min(first, due or first) or due
  if changed and not s.paused then
    if n > 0 then
      p.rung = true
    elseif first and brought > 0 then
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
if closed then
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
