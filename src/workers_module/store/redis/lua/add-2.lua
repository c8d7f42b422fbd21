--[[
Adds jobs, all or none, in their order.

KEYS     see core
ARGV[4]  how many groups: jobs one behind the other that differ in nothing but their data
ARGV[5]  "1" when any of them has a parent
ARGV[6…] each: how many jobs, the name of their place, the id of the only one or "", name, opts, and JSON for what is not
         the default: the table of the moves' spec, and pi (the index of its parent in this call), pq and pid (a stored
         parent's queue and id), po (what its failure does to the parent); then the data of each

Returns  for each its id, if it is new and waits; else a list: id, state, "", "same_id" or "deduplicated"
         -5, index: the parent is unknown
         -7, index: it is the child of another job already, or names itself
]]
local GROUPS = tonumber(ARGV[4])
local added = {}
local plain = true
local head = 6
for _ = 1, GROUPS do
  local p = place(ARGV[head + 1])
  plain = plain and ARGV[head + 2] == '' and ARGV[head + 5] == '' and p == p.base and #tagged(p) == 0
  head = head + 6 + tonumber(ARGV[head])
end

-- Jobs of which nothing is said, as of most: the functions that come behind are not even made, which would take longer.
if plain then
  head = 6
  for _ = 1, GROUPS do
    local n, p, name, opts = tonumber(ARGV[head]), place(ARGV[head + 1]), ARGV[head + 3], ARGV[head + 4]
    head = head + 6
    know(p)
    local before = call('INCRBY', p.k .. 'id', n) - n
    for from = 1, n, CHUNK do
      local size = min(CHUNK, n - from + 1)
      local ids, keys = {}, {}
      for i = 1, size do
        ids[i] = fmt('%d', before + from + i - 1)
        keys[i] = p.k .. ids[i]
      end
      local taken = call('EXISTS', unpack(keys)) > 0
      for i = 1, size do
        while taken and call('EXISTS', keys[i]) == 1 do
          ids[i] = int(call('INCR', p.k .. 'id'))
          keys[i] = p.k .. ids[i]
        end
        local id = ids[i]
        call('HSET', keys[i], 'name', name, 'data', ARGV[head + from + i - 2], 'opts', opts, 'timestamp', NOW,
          'delay', '0', 'priority', '0')
        emit(p, 'added', 'jobId', id, 'name', name)
        emit(p, 'waiting', 'jobId', id)
        added[#added + 1] = id
      end
      call('LPUSH', p.wait, unpack(ids))
    end
    p.rung = true
    head = head + n
  end
  wake()
  return added
end

--> ends
--> moves

local specs = {}
local per_base = {}
head = 6
for _ = 1, GROUPS do
  local n, p = tonumber(ARGV[head]), place(ARGV[head + 1])
  local x = ARGV[head + 5] ~= '' and cjson.decode(ARGV[head + 5]) or {}
  for i = 1, n do
    specs[#specs + 1] = {
      p = p, id = ARGV[head + 2], name = ARGV[head + 3], data = ARGV[head + 5 + i], opts = ARGV[head + 4], x = x,
    }
  end
  per_base[p.base] = (per_base[p.base] or 0) + n
  head = head + 6 + n
end

local function ref(p, id)
  return p.base.name .. ':' .. id
end

local parents = {}

if ARGV[5] == '1' then
  local own = {}
  for i = 1, #specs do
    local s = specs[i]
    local wanted
    if s.x.pi then
      local target = specs[s.x.pi]
      parents[s.x.pi] = true
      wanted = target.id == '' and s.x.pi or ref(target.p, target.id)
    elseif s.x.pid then
      wanted = ref(queue_place(s.x.pq), s.x.pid)
      if own[wanted] == nil and not find_job(queue_place(s.x.pq), s.x.pid) then
        return { -5, i }
      end
    end
    if s.id ~= '' then
      local me = ref(s.p, s.id)
      local current = own[me]
      if current == nil then
        current = false
        local p = find_job(s.p, s.id)
        local parent_key = p and call('HGET', p.k .. s.id, 'parentKey')
        if parent_key and call('EXISTS', parent_key) == 1 then
          current = ref(split(parent_key))
        end
      end
      if wanted and (wanted == me or (current and current ~= wanted)) then
        return { -7, i, wanted == me and 1 or 0 }
      end
      if not s.x.k then
        own[me] = wanted or current
      end
    end
  end
end

-- Every attempt counts, as in BullMQ: also one with an id of its own.
for b, n in pairs(per_base) do
  know(b)
  b.next = call('INCRBY', b.k .. 'id', n) - n
end
local chosen = {}
for i = 1, #specs do
  local s = specs[i]
  local b = s.p.base
  b.next = b.next + 1
  s.number = int(b.next)
  if s.id == '' then
    chosen[#chosen + 1] = s
  end
end
local taken = false
for from = 1, #chosen, CHUNK do
  local keys = {}
  for i = from, min(from + CHUNK - 1, #chosen) do
    keys[#keys + 1] = chosen[i].p.base.k .. chosen[i].number
  end
  taken = taken or call('EXISTS', unpack(keys)) > 0
end
for i = 1, #chosen do
  local s = chosen[i]
  if taken or #tagged(s.p) > 0 then
    while find_job(s.p, s.number) do
      s.number = int(call('INCR', s.p.base.k .. 'id'))
    end
  end
  s.id = s.number
  s.fresh = true
end

-- One push for all plain jobs of a place.
local pushed = {}
local function later(p, id)
  if p ~= p.base then
    put_behind(p, id, 0)
    return
  end
  local ids = pushed[p]
  if not ids then
    ids = {}
    pushed[p] = ids
  end
  ids[#ids + 1] = id
  p.rung = true
end

local function own_key(p, dedup, id, ms)
  local key = p.base.k .. 'de:' .. dedup
  if ms then
    put(key, id, ms)
  else
    call('SET', key, id)
  end
  call('DEL', p.base.k .. 'dn:' .. dedup)
end

-- The id of the job that counts instead, or nil after making the new one the owner of its key.
local function deduplicate(s)
  local x, b = s.x, s.p.base
  local key = b.k .. 'de:' .. x.k
  local ms = x.m ~= 'keep_latest' and x.t or nil
  local owner = get(key)
  local op = owner and find_job(b, owner)
  if not owner or (not op and ttl(key) == -1) then
    own_key(b, x.k, s.id, ms)
    return nil
  end
  local delayed = op and call('ZSCORE', op.delayed, owner)
  if x.m == 'debounce' then
    if not delayed then
      return owner
    end
    remove(op, owner, false)
    own_key(b, x.k, s.id, ms)
    emit(s.p, 'deduplicated', 'jobId', s.id, 'deduplicationId', x.k, 'deduplicatedJobId', owner)
    return nil
  end
  if x.m == 'extend' then
    if ms then
      expire(key, ms)
    else
      call('PERSIST', key)
    end
  elseif x.m == 'keep_latest' and op and call('LPOS', op.active, owner) then
    local next_key = b.k .. 'dn:' .. x.k
    call('PERSIST', key)
    call('DEL', next_key)
    call('HSET', next_key, 'name', s.name, 'data', s.data, 'opts', s.opts, 'jid', s.id,
      'wm:x', cjson.encode(x), 'wm:queue', s.p.name)
  end
  emit(s.p, 'deduplicated', 'jobId', owner, 'deduplicationId', x.k, 'deduplicatedJobId', s.id)
  if x.m == 'reschedule' and delayed then
    local due = x.du or (x.ts or now) + (x.d or 0)
    call('ZREM', op.delayed, owner)
    put_delayed(op, owner, due)
    call('HSET', op.k .. owner, 'delay', int(max(0, due - (x.ts or now))))
    emit(op, 'delayed', 'jobId', owner, 'delay', int(due))
  end
  return owner
end

local function add(s, i)
  local x = s.x
  local parent_key
  if x.pi then
    local target = specs[x.pi]
    local tp = not target.fresh and find_job(target.p, target.id) or target.p
    parent_key = tp.k .. target.id
  elseif x.pid then
    parent_key = find_job(queue_place(x.pq), x.pid).k .. x.pid
  end
  local p = not s.fresh and find_job(s.p, s.id)
  if p then
    local key = p.k .. s.id
    local state = state_of(p, s.id)
    if parent_key then
      call('HSET', key, 'parentKey', parent_key, 'parent', parent_json(parent_key, x.po),
        'opts', with_parent(without_parent(call('HGET', key, 'opts') or '{}'), parent_key))
      if not x.pi then
        adopt(parent_key, key, state, call('HGET', key, 'returnvalue'))
        release_if_done(parent_key)
      end
    end
    emit(p, 'duplicated', 'jobId', s.id)
    s.p = p
    return { s.id, state, 'same_id' }
  end
  if x.k then
    local owner = deduplicate(s)
    if owner then
      local op = find_job(s.p, owner)
      return { owner, op and state_of(op, owner) or 'completed', 'deduplicated' }
    end
  end
  know(s.p)
  if parent_key then
    s.parent_key, s.parent = parent_key, parent_json(parent_key, x.po)
    s.opts = with_parent(s.opts, parent_key)
  end
  local state = insert(s.p, s.id, s, parents[i], later)
  if parent_key and not x.pi then
    adopt(parent_key, s.p.k .. s.id, state)
  end
  return state == 'waiting' and s.id or { s.id, state, '' }
end

local children = {}
for i = 1, #specs do
  local s = specs[i]
  added[i] = add(s, i)
  if s.x.pi then
    children[s.x.pi] = children[s.x.pi] or {}
    table.insert(children[s.x.pi], s)
  end
  for _, child in ipairs(children[i] or {}) do
    local key = child.p.k .. child.id
    local state = state_of(child.p, child.id)
    adopt(s.p.k .. s.id, key, state, state == 'completed' and call('HGET', key, 'returnvalue'))
  end
end
for i = 1, #specs do
  if parents[i] then
    local s = specs[i]
    release_if_done(s.p.k .. s.id)
    added[i] = { s.id, state_of(s.p, s.id), type(added[i]) == 'table' and added[i][3] or '' }
  end
end
for p, ids in pairs(pushed) do
  for from = 1, #ids, CHUNK do
    call('LPUSH', p.wait, unpack(ids, from, min(from + CHUNK - 1, #ids)))
  end
end
wake()
return added
