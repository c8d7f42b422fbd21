--[[
What all scripts share: where things lie, what time it is, and the moves every caller must make alike.

KEYS[1]  meta of the queue the call is about; every other key is in the same hash slot
KEYS[2]  its wm:tagsets
KEYS[3]  on a cluster: its wm:whole, which never exists, so that no script runs while the slot is on its way
ARGV[1]  prefix with its colon ("bull:")
ARGV[2]  the queue
ARGV[3]  the instant in ms, or "" for the server's own clock

A place is one BullMQ queue: the queue itself, or the part of it that holds the jobs with one set of tags ("mail@a+b").
Numbers go to Redis as text without exponent, and no JSON of a user is ever decoded to be written again.
]]
local call = redis.call
local fmt, sub, find, floor = string.format, string.sub, string.find, math.floor
local min, max = math.min, math.max
local PRE, QUEUE = ARGV[1], ARGV[2]
local FRONT = 4294967296
local MANUAL = 9007199254740991
local CRASHED = 'job stalled more than allowable limit'
local CHUNK = 1000

-- Writing a number costs more than most commands, and a batch has few different ones.
local TEXT = setmetatable({}, {
  __index = function(known, n)
    local text = fmt('%.0f', n)
    known[n] = text
    return text
  end,
})

local function int(n)
  return TEXT[n]
end

-- time: with a clock of the caller's, expiries lie far in the future, so that the server never acts on them

local GIVEN = ARGV[3] ~= ''
local FAR = 4398046511104
local now
if GIVEN then
  now = tonumber(ARGV[3])
else
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
end

local NOW = int(now)

local function expire(key, ms)
  if GIVEN then
    call('PEXPIREAT', key, int(now + ms + FAR))
  else
    call('PEXPIRE', key, int(ms))
  end
end

local function put(key, value, ms)
  if GIVEN then
    call('SET', key, value)
    expire(key, ms)
  else
    call('SET', key, value, 'PX', int(ms))
  end
end

-- How long a key has to live: negative when it is gone, or (-1) lives for ever.
local function ttl(key)
  if not GIVEN then
    return call('PTTL', key)
  end
  local at = call('PEXPIRETIME', key)
  if at < 0 then
    return at
  end
  local left = at - FAR - now
  if left <= 0 then
    call('DEL', key)
    return -2
  end
  return left
end

local function get(key)
  if GIVEN and ttl(key) == -2 then
    return false
  end
  return call('GET', key)
end

-- places

local places = {}

local function place(name)
  local p = places[name]
  if p then
    return p
  end
  local k = name .. ':'
  p = {
    name = name,
    k = k,
    wait = k .. 'wait',
    prioritized = k .. 'prioritized',
    delayed = k .. 'delayed',
    active = k .. 'active',
    completed = k .. 'completed',
    failed = k .. 'failed',
    parents = k .. 'waiting-children',
    events = k .. 'events',
    marker = k .. 'marker',
    meta = k .. 'meta',
    pc = k .. 'pc',
    stalled = k .. 'stalled',
  }
  places[name] = p
  local at = sub(name, 1, #PRE) == PRE and find(name, '@', #PRE + 1, true)
  if at then
    p.tags = sub(name, at + 1)
    p.base = place(sub(name, 1, at - 1))
  else
    p.tags = ''
    p.base = p
  end
  return p
end

local function queue_place(queue)
  return place(PRE .. queue)
end

-- The place and the id in a job's key. Queues have no colon; ids may.
local function split(key)
  if sub(key, 1, #PRE) == PRE then
    local at = find(key, ':', #PRE + 1, true)
    if at then
      return place(sub(key, 1, at - 1)), sub(key, at + 1)
    end
  end
  local at = find(key, ':[^:]*$')
  return place(sub(key, 1, at - 1)), sub(key, at + 1)
end

-- The places of a queue's jobs with tags, sorted.
local function tagged(p)
  local b = p.base
  if not b.tagged then
    b.tagged = {}
    local sets = call('SMEMBERS', b.k .. 'wm:tagsets')
    table.sort(sets)
    for i = 1, #sets do
      b.tagged[i] = place(b.name .. '@' .. sets[i])
    end
  end
  return b.tagged
end

local function every(p)
  local b = p.base
  local all = { b }
  local others = tagged(b)
  for i = 1, #others do
    all[i + 1] = others[i]
  end
  return all
end

local function settings(p)
  local b = p.base
  if not b.settings then
    local m = call('HMGET', b.meta, 'paused', 'concurrency', 'max', 'duration', 'opts.maxLenEvents', 'version')
    b.settings = {
      paused = m[1] and true or false,
      concurrency = tonumber(m[2]),
      max = tonumber(m[3]),
      duration = tonumber(m[4]),
      cap = tonumber(m[5]) or 10000,
      known = m[5] and true or false,
      version = m[6],
    }
  end
  return b.settings
end

-- Whoever needs the cap of the events first writes it; a queue with meta is one that is listed.
local function know(p)
  local s = settings(p)
  if not s.known then
    call('HSET', p.base.meta, 'opts.maxLenEvents', '10000')
    s.known = true
  end
  if p ~= p.base and not p.known then
    p.known = true
    if call('SADD', p.base.k .. 'wm:tagsets', p.tags) == 1 then
      p.base.tagged = nil
      call('HSETNX', p.meta, 'opts.maxLenEvents', int(s.cap))
      if s.paused then
        call('HSET', p.meta, 'paused', '1')
      end
      -- Readers that sleep on the queue's own stream learn that there is another one.
      call('XADD', p.base.events, '*', 'event', 'wm:tagsets')
    end
  end
end

local function emit(p, ...)
  if not p.trimmed then
    p.trimmed = true
    call('XTRIM', p.events, 'MAXLEN', '~', int(settings(p).cap))
  end
  call('XADD', p.events, '*', 'event', ...)
end

-- waking

local function total_active(p)
  local n = 0
  for _, one in ipairs(every(p)) do
    n = n + call('LLEN', one.active)
  end
  return n
end

local function maxed(p)
  local s = settings(p)
  return s.paused or (s.concurrency and total_active(p) >= s.concurrency) or false
end

local function mark(p, score, member)
  call('ZADD', p.marker, score, member)
  if p ~= p.base then
    for tag in string.gmatch(p.tags, '[^+]+') do
      call('ZADD', p.base.k .. 'wm:marker:' .. tag, score, member)
    end
  end
end

local function next_due(p)
  local first = call('ZRANGE', p.delayed, 0, 0, 'WITHSCORES')
  return first[2] and floor(tonumber(first[2]) / 4096) or nil
end

-- Ends every script that may have made jobs ready: one marker for each place, however many jobs there are.
local function wake()
  for _, p in pairs(places) do
    if p.late then
      local due = next_due(p)
      if due then
        mark(p, int(due), '1')
      end
    end
    if p.rung and not maxed(p) then
      mark(p, '0', '0')
    end
  end
end

-- placing

-- Jobs with tags carry a number, because workers with tags choose among several places.
local function number(p, id, by)
  if p ~= p.base then
    local field = by > 0 and 'wm:last' or 'wm:first'
    call('HSET', p.k .. id, 'wm:seq', call('HINCRBY', p.base.meta, field, by))
  end
end

local function put_behind(p, id, priority)
  number(p, id, 1)
  if priority > 0 then
    call('ZADD', p.prioritized, int(priority * FRONT + call('INCR', p.pc) % FRONT), id)
  else
    call('LPUSH', p.wait, id)
  end
  p.rung = true
end

-- Node puts what goes in front of its priority at counter 0; one below the first keeps several of them in order. Where
-- that would be counter 0, it is the least part of one that such a score can hold, which for priorities up to 4096 makes
-- room for hundreds.
local function put_in_front(p, id, priority)
  number(p, id, -1)
  if priority > 0 then
    local low = priority * FRONT
    local first = call('ZRANGEBYSCORE', p.prioritized, int(low), int(low + FRONT - 1), 'WITHSCORES', 'LIMIT', 0, 1)
    local score
    if first[2] then
      score = tonumber(first[2])
      local _, exponent = math.frexp(low)
      score = max(low, score - (score - 1 > low and 1 or math.ldexp(1, exponent - 53)))
    else
      score = low + call('INCRBY', p.pc, 1000) % FRONT
    end
    call('ZADD', p.prioritized, fmt('%.17g', score), id)
  else
    call('RPUSH', p.wait, id)
  end
  p.rung = true
end

local function queue_up(p, id, priority, lifo)
  if lifo and priority == 0 then
    put_in_front(p, id, priority)
  else
    put_behind(p, id, priority)
  end
end

-- The score of a due instant: 12 bits count the jobs of one millisecond.
local function put_delayed(p, id, due)
  local low = due * 4096
  local last = call('ZREVRANGEBYSCORE', p.delayed, int(low + 4095), int(low), 'WITHSCORES', 'LIMIT', 0, 1)
  local score = last[2] and min(tonumber(last[2]) + 1, low + 4095) or low
  call('ZADD', p.delayed, int(score), id)
  p.late = true
end

-- The same for sets scored by the plain millisecond: a fraction below one keeps the order within it.
local function score_now(p, key)
  p.last = p.last or {}
  local score = p.last[key]
  if not score then
    local last = call('ZREVRANGEBYSCORE', key, '(' .. int(now + 1), NOW, 'WITHSCORES', 'LIMIT', 0, 1)
    score = last[2] and tonumber(last[2]) or now - 1 / 4096
  end
  score = min(score + 1 / 4096, now + 4095 / 4096)
  p.last[key] = score
  return fmt('%.17g', score)
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

local function promote(p, most)
  local moved = 0
  local limit = int((now + 1) * 4096 - 1)
  while moved < most do
    local ids = call('ZRANGEBYSCORE', p.delayed, '-inf', limit, 'LIMIT', 0, min(most - moved, CHUNK))
    if #ids == 0 then
      break
    end
    call('ZREM', p.delayed, unpack(ids))
    for i = 1, #ids do
      local id = ids[i]
      local key = p.k .. id
      put_behind(p, id, tonumber(call('HGET', key, 'priority')) or 0)
      call('HSET', key, 'delay', '0')
      emit(p, 'waiting', 'jobId', id, 'prev', 'delayed')
    end
    moved = moved + #ids
  end
  return moved
end

-- finding

local function find_job(p, id)
  local b = p.base
  if call('EXISTS', b.k .. id) == 1 then
    return b
  end
  local others = tagged(b)
  for i = 1, #others do
    if call('EXISTS', others[i].k .. id) == 1 then
      return others[i]
    end
  end
  return nil
end

-- What is in no other collection waits: looking through the list would cost its length.
local function state_of(p, id)
  enter_all()
  if call('ZSCORE', p.completed, id) then
    return 'completed'
  elseif call('ZSCORE', p.failed, id) then
    return 'failed'
  elseif call('ZSCORE', p.delayed, id) then
    return 'delayed'
  elseif call('ZSCORE', p.prioritized, id) then
    return 'prioritized'
  elseif call('ZSCORE', p.parents, id) then
    return 'waiting-children'
  elseif call('LPOS', p.active, id) then
    return 'active'
  end
  return 'waiting'
end

local function has_ended(state)
  return state == 'completed' or state == 'failed'
end

local function options(text)
  local ok, value = pcall(cjson.decode, text or '')
  return ok and type(value) == 'table' and value or {}
end

local function is_lifo(field, opts)
  if field then
    return field == '1'
  end
  return options(opts).lifo == true
end

local function max_attempts(field, opts)
  local n = tonumber(field or options(opts).attempts) or 1
  return n
end

local function is_current(p, id, schedule)
  if not schedule then
    return false
  end
  local slot = call('ZSCORE', p.base.k .. 'repeat', schedule)
  return slot and id == 'repeat:' .. schedule .. ':' .. int(tonumber(slot)) or false
end

-- leaving

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

local function leave(p, id, state)
  if state == 'waiting' then
    if call('LREM', p.wait, -1, id) == 0 then
      call('LREM', p.k .. 'paused', -1, id)
    end
  elseif state == 'active' then
    call('LREM', p.active, -1, id)
    stop(p, id, true)
  elseif state == 'waiting-children' then
    call('ZREM', p.parents, id)
  else
    call('ZREM', p[state], id)
  end
end

local function delete_keys(p, id, also)
  local j = p.k .. id
  call('UNLINK', j, j .. ':logs', j .. ':dependencies', j .. ':processed', j .. ':failed', j .. ':unsuccessful')
  if also then
    call('DEL', j .. ':lock')
  end
end

-- parents and children

local remove_hard

local function child_field(key)
  return 'wm:c:' .. key
end

local function pending(key)
  return call('SCARD', key .. ':dependencies')
end

-- Notes a child on a stored parent. Its number keeps the order, which sets do not have.
local function adopt(parent_key, child_key, state, result)
  local field = child_field(child_key)
  local known = call('HEXISTS', parent_key, field) == 1
  if not known then
    call('HSET', parent_key, field, call('HINCRBY', parent_key, 'wm:n', 1))
  end
  if state == 'completed' then
    call('SREM', parent_key .. ':dependencies', child_key)
    call('HDEL', parent_key .. ':failed', child_key)
    call('ZREM', parent_key .. ':unsuccessful', child_key)
    call('HSET', parent_key .. ':processed', child_key, result or 'null')
  elseif not known then
    call('SADD', parent_key .. ':dependencies', child_key)
  end
end

local function release(parent_key, silent)
  local p, id = split(parent_key)
  local h = call('HMGET', parent_key, 'delay', 'priority')
  local delay, priority = tonumber(h[1]) or 0, tonumber(h[2]) or 0
  local prev = 'delayed'
  if call('ZREM', p.parents, id) == 1 then
    prev = 'waiting-children'
  else
    call('ZREM', p.delayed, id)
  end
  if delay > 0 then
    put_delayed(p, id, now + delay)
    if not silent then
      emit(p, 'delayed', 'jobId', id, 'delay', int(now + delay))
    end
    return
  end
  if priority > 0 then
    put_behind(p, id, priority)
  else
    put_in_front(p, id, 0)
  end
  if not silent then
    emit(p, 'waiting', 'jobId', id, 'prev', prev)
  end
end

local function waits(parent_key)
  local p, id = split(parent_key)
  return call('ZSCORE', p.parents, id) and true or false
end

local function release_if_done(parent_key)
  if pending(parent_key) == 0 and waits(parent_key) then
    release(parent_key)
  end
end

local function child_completed(key, parent_key, result)
  if call('SREM', parent_key .. ':dependencies', key) == 1 then
    call('HSET', parent_key .. ':processed', key, result)
    release_if_done(parent_key)
  end
end

local function policy_of(parent)
  local value = options(parent)
  if value.fpof then
    return 'fpof'
  elseif value.cpof then
    return 'cpof'
  elseif value.idof then
    return 'idof'
  elseif value.rdof then
    return 'rdof'
  end
  return nil
end

local function child_failed(key, parent_key, parent, reason)
  local policy = policy_of(parent)
  if not policy or call('SREM', parent_key .. ':dependencies', key) == 0 then
    return
  end
  local field = child_field(key)
  if policy == 'fpof' then
    call('ZADD', parent_key .. ':unsuccessful', NOW, key)
    local noted = call('HGET', parent_key, field) or ''
    call('HSET', parent_key, field, string.match(noted, '^%d*') .. ':' .. reason)
    local p, id = split(parent_key)
    local state = state_of(p, id)
    if not has_ended(state) then
      call('HSET', parent_key, 'defa', 'child ' .. key .. ' failed')
    end
    if state == 'delayed' then
      call('HSET', parent_key, 'delay', '0')
    end
    if state == 'delayed' or state == 'waiting-children' then
      release(parent_key)
    end
  elseif policy == 'rdof' then
    call('HDEL', parent_key, field)
    release_if_done(parent_key)
  else
    call('HSET', parent_key .. ':failed', key, reason)
    if policy == 'cpof' then
      if waits(parent_key) then
        release(parent_key)
      end
    else
      release_if_done(parent_key)
    end
  end
end

-- Takes a job that is deleted, or detached, off its parent's list of pending children.
local function child_gone(p, id, parent_key, hard)
  if not parent_key then
    return
  end
  local key = p.k .. id
  if call('SREM', parent_key .. ':dependencies', key) == 0 then
    return
  end
  call('HDEL', parent_key, child_field(key))
  if pending(parent_key) > 0 or not waits(parent_key) then
    return
  end
  local pp, pid = split(parent_key)
  if hard and pp.base == p.base then
    remove_hard(pp, pid, 'waiting-children')
  else
    release(parent_key, hard)
  end
end

-- Keys of children in the order they were added.
local function in_order(parent_key, keys)
  local place_of = {}
  for i = 1, #keys do
    local noted = call('HGET', parent_key, child_field(keys[i]))
    place_of[keys[i]] = noted and tonumber(string.match(noted, '^%d+')) or math.huge
  end
  table.sort(keys, function(a, b)
    if place_of[a] ~= place_of[b] then
      return place_of[a] < place_of[b]
    end
    return a < b
  end)
  return keys
end

-- A job after its pending children, theirs before them; each with its place, id and key.
local function family(p, id)
  local first = { p = p, id = id, key = p.k .. id }
  local seen, found, stack = { [first.key] = true }, { first }, { first }
  while #stack > 0 do
    local parent = table.remove(stack)
    local keys = in_order(parent.key, call('SMEMBERS', parent.key .. ':dependencies'))
    for i = 1, #keys do
      if not seen[keys[i]] and call('EXISTS', keys[i]) == 1 then
        seen[keys[i]] = true
        local cp, cid = split(keys[i])
        local child = { p = cp, id = cid, key = keys[i] }
        found[#found + 1] = child
        stack[#stack + 1] = child
      end
    end
  end
  local turned = {}
  for i = #found, 1, -1 do
    turned[#turned + 1] = found[i]
  end
  return turned
end

-- deduplication keys

local function drop_key(p, id, dedup)
  if dedup then
    local key = p.base.k .. 'de:' .. dedup
    if get(key) == id then
      call('DEL', key, p.base.k .. 'dn:' .. dedup)
    end
  end
end

-- removing

remove_hard = function(p, id, state)
  local h = call('HMGET', p.k .. id, 'parentKey', 'deid')
  leave(p, id, state or state_of(p, id))
  delete_keys(p, id)
  drop_key(p, id, h[2])
  child_gone(p, id, h[1], true)
end

local PREV = { waiting = 'wait' }

local function remove(p, id, children)
  local gone = children and family(p, id) or { { p = p, id = id, key = p.k .. id } }
  for _, one in ipairs(gone) do
    one.state = state_of(one.p, one.id)
    one.h = call('HMGET', one.key, 'parentKey', 'deid')
  end
  child_gone(p, id, gone[#gone].h[1], false)
  for _, one in ipairs(gone) do
    leave(one.p, one.id, one.state)
    delete_keys(one.p, one.id)
    drop_key(one.p, one.id, one.h[2])
    emit(one.p, 'removed', 'jobId', one.id, 'prev', PREV[one.state] or one.state)
  end
end

-- making jobs

--[[
A spec: name, data, opts (texts); x, a table of what is not the default:
  ts timestamp, p priority, l lifo, d delay, du due, ma wm:attempts, ml wm:lifo, mp wm:policy, oc on_crash,
  k dedup key, m its mode, t its ttl, s schedule
]]
local function due_of(x, ts)
  local due
  if x.du then
    due = x.du
  elseif (x.d or 0) > 0 then
    due = ts + x.d
  end
  return due and due > now and due or nil
end

local function insert(p, id, spec, parked, later)
  local x = spec.x
  local ts = x.ts or now
  local priority = x.p or 0
  local due = due_of(x, ts)
  local h = {
    'name', spec.name, 'data', spec.data, 'opts', spec.opts, 'timestamp', int(ts),
    'delay', due and int(max(0, due - ts)) or '0', 'priority', int(priority),
  }
  local n = #h
  local function set(field, value)
    if value then
      h[n + 1], h[n + 2] = field, value
      n = n + 2
    end
  end
  set('wm:attempts', x.ma and int(x.ma))
  set('wm:lifo', x.ml and int(x.ml))
  set('wm:policy', x.mp)
  set('wm:oc', x.oc)
  set('deid', x.k)
  set('rjk', x.s)
  set('parentKey', spec.parent_key)
  set('parent', spec.parent)
  call('HSET', p.k .. id, unpack(h))
  emit(p, 'added', 'jobId', id, 'name', spec.name)
  if parked then
    put_now(p, p.parents, id)
    emit(p, 'waiting-children', 'jobId', id)
    return 'waiting-children'
  elseif due then
    put_delayed(p, id, due)
    emit(p, 'delayed', 'jobId', id, 'delay', int(due))
    return 'delayed'
  end
  if later and priority == 0 and not x.l then
    later(p, id)
  else
    queue_up(p, id, priority, x.l)
  end
  emit(p, 'waiting', 'jobId', id)
  return priority > 0 and 'prioritized' or 'waiting'
end

-- Names and ids inside JSON of ours; nothing of a user's is written again.
local function parent_json(parent_key, policy)
  local p, id = split(parent_key)
  local flag = policy and ',"' .. policy .. '":true' or ''
  return '{"id":' .. cjson.encode(id) .. ',"queueKey":' .. cjson.encode(p.name) .. flag .. '}'
end

-- Adds the parent to the text of the options, where Bull Board looks for it; readers of ours take it out again.
local function with_parent(opts, parent_key)
  if sub(opts, 1, 1) ~= '{' or sub(opts, -1) ~= '}' then
    return opts
  end
  local p, id = split(parent_key)
  local head = sub(opts, 1, -2)
  local comma = find(head, '^{%s*$') and '' or ','
  return head .. comma .. '"parent":{"id":' .. cjson.encode(id) .. ',"queue":' .. cjson.encode(p.name) .. '}}'
end

local function without_parent(opts)
  local at = find(opts, ',?"parent":{"id":"[^{}]-","queue":"[^"]*"}}$')
  return at and sub(opts, 1, at - 1) .. '}' or opts
end

-- ending

-- The job kept for the moment its predecessor ends; what Node kept says all in its options.
local function kept_spec(p, dn)
  local h = {}
  for i = 1, #dn, 2 do
    h[dn[i]] = dn[i + 1]
  end
  local x
  if h['wm:x'] then
    x = options(h['wm:x'])
  else
    local o = options(h.opts)
    x = { p = tonumber(o.priority), d = tonumber(o.delay), l = o.lifo == true or nil }
    x.k = type(o.de) == 'table' and o.de.id or nil
  end
  x.ts = nil
  local target = h['wm:queue'] and place(h['wm:queue']) or p
  local spec = { name = h.name or 'unknown', data = h.data or '{}', opts = h.opts or '{}', x = x }
  spec.parent_key, spec.parent = h.pk, h.pd
  return target, h.jid, spec
end

-- Lets go of an ending job's key, or lets the call kept for this moment in.
local function free_key(p, id, dedup)
  local b = p.base
  local key, next_key = b.k .. 'de:' .. dedup, b.k .. 'dn:' .. dedup
  if get(key) ~= id then
    return
  end
  local dn = call('HGETALL', next_key)
  if #dn > 0 then
    call('DEL', next_key)
    local target, jid, spec = kept_spec(p, dn)
    if jid and not find_job(b, jid) then
      call('INCR', b.k .. 'id')
      spec.x.k = dedup
      call('SET', key, jid)
      know(target)
      insert(target, jid, spec)
      return
    end
  end
  if ttl(key) == -1 then
    call('DEL', key)
  end
end

-- Ends a job in failed, with all that hangs on it; it has left its place already.
local function fail(p, id, h, reason, trace, attempts, prev)
  local key = p.k .. id
  local fields = { 'failedReason', reason, 'finishedOn', NOW, 'atm', int(attempts) }
  if trace and trace ~= '' then
    fields[7], fields[8] = 'stacktrace', trace
  end
  call('HSET', key, unpack(fields))
  call('HDEL', key, 'defa')
  if h.deid then
    free_key(p, id, h.deid)
  end
  if h.parentKey then
    child_failed(key, h.parentKey, h.parent, reason)
  end
  put_now(p, p.failed, id)
  emit(p, 'failed', 'jobId', id, 'failedReason', reason, 'prev', prev)
  if attempts >= max_attempts(h['wm:attempts'], h.opts) then
    emit(p, 'retries-exhausted', 'jobId', id, 'attemptsMade', int(attempts))
  end
end

local FAIL_FIELDS = { 'atm', 'deid', 'parentKey', 'parent', 'opts', 'wm:attempts' }

local function fields_of(key, names)
  local values = call('HMGET', key, unpack(names))
  local h = {}
  for i = 1, #names do
    h[names[i]] = values[i] or nil
  end
  return h
end

-- Retention: removes the oldest of a queue's ended jobs that are too many (count) or ended at or before an instant.
local function trim(b, state, count, before, limit)
  enter_all()
  local all = every(b)
  local size, old = 0, 0
  for _, p in ipairs(all) do
    if count then
      size = size + call('ZCARD', p[state])
    end
    if before then
      old = old + call('ZCOUNT', p[state], '-inf', '(' .. int(before + 1))
    end
  end
  local n = min(max(count and size - count or 0, old), limit)
  if n <= 0 then
    return 0
  end
  local chosen = {}
  for _, p in ipairs(all) do
    local found = call('ZRANGE', p[state], 0, n - 1, 'WITHSCORES')
    for i = 1, #found, 2 do
      chosen[#chosen + 1] = { p, found[i], tonumber(found[i + 1]), #chosen }
    end
  end
  if #all > 1 then
    table.sort(chosen, function(a, c)
      if a[3] ~= c[3] then
        return a[3] < c[3]
      end
      return a[4] < c[4]
    end)
  end
  n = min(n, #chosen)
  local gone = {}
  if #all == 1 then
    call('ZREMRANGEBYRANK', b[state], 0, n - 1)
  end
  for i = 1, n do
    local p, id = chosen[i][1], chosen[i][2]
    local j = p.k .. id
    if #all > 1 then
      call('ZREM', p[state], id)
    end
    -- A completed child is on no list of pending ones.
    local parent_key = state == 'failed' and call('HGET', j, 'parentKey')
    if parent_key then
      child_gone(p, id, parent_key, false)
    end
    local g = #gone
    gone[g + 1], gone[g + 2], gone[g + 3] = j, j .. ':logs', j .. ':dependencies'
    gone[g + 4], gone[g + 5], gone[g + 6] = j .. ':processed', j .. ':failed', j .. ':unsuccessful'
    if #gone >= 3000 then
      call('UNLINK', unpack(gone))
      gone = {}
    end
  end
  if #gone > 0 then
    call('UNLINK', unpack(gone))
  end
  return n
end
