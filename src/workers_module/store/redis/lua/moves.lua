--[[
The moves of single jobs: placing, finding, leaving, parents and children, removing, making, ending.
]]
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
child_gone = function(p, id, parent_key, hard)
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
  local more = {
    ['wm:attempts'] = x.ma and int(x.ma), ['wm:lifo'] = x.ml and int(x.ml), ['wm:policy'] = x.mp, ['wm:oc'] = x.oc,
    deid = x.k, rjk = x.s, parentKey = spec.parent_key, parent = spec.parent,
  }
  for field, value in pairs(more) do
    h[n + 1], h[n + 2] = field, value
    n = n + 2
  end
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

