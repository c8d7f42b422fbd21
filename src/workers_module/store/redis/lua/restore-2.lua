--[[
Writes jobs back as they were.

KEYS     see core
ARGV[4]  "1": an id that exists is an error
ARGV[5…] for each: the name of its place, id, state, due, finished or "", JSON (p priority, l lifo, pq and pid of its
         parent, po what its failure does, k deduplication key), how many texts follow, and its hash as fields and values

Returns  how many were written; or -1 and the place of the first that exists
]]
local records, seen = {}, {}
do
  local at = 5
  while at <= #ARGV do
    local n = tonumber(ARGV[at + 6])
    local r = {
      p = place(ARGV[at]), id = ARGV[at + 1], state = ARGV[at + 2], due = tonumber(ARGV[at + 3]),
      finished = tonumber(ARGV[at + 4]), x = cjson.decode(ARGV[at + 5]), from = at + 7, to = at + 6 + n,
    }
    local me = r.p.base.name .. ':' .. r.id
    if seen[me] or find_job(r.p, r.id) then
      if ARGV[4] == '1' then
        return { -1, #records + 1, r.id, r.p.base.name }
      end
    else
      seen[me] = true
      records[#records + 1] = r
    end
    at = at + 7 + n
  end
end

local function reunite(parent_key, child_key)
  local parent_place, parent_id = split(parent_key)
  if call('EXISTS', parent_key) == 0 then
    -- It may come in a later call.
    call('HSET', parent_place.base.k .. 'wm:orphans', child_key, parent_id)
    return
  end
  local p, id = split(child_key)
  if call('HEXISTS', parent_key, child_field(child_key)) == 1 or call('EXISTS', child_key) == 0 then
    return
  end
  local state = state_of(p, id)
  local h = call('HMGET', child_key, 'parent', 'returnvalue', 'failedReason')
  if state ~= 'failed' then
    adopt(parent_key, child_key, state, h[2])
    return
  end
  local policy = policy_of(h[1])
  if policy == 'rdof' then
    return
  end
  adopt(parent_key, child_key, state)
  if policy then
    call('SREM', parent_key .. ':dependencies', child_key)
    if policy == 'fpof' then
      call('ZADD', parent_key .. ':unsuccessful', NOW, child_key)
      local seq = call('HGET', parent_key, child_field(child_key))
      call('HSET', parent_key, child_field(child_key), seq .. ':' .. (h[3] or ''))
    else
      call('HSET', parent_key .. ':failed', child_key, h[3] or '')
    end
  end
end

for _, r in ipairs(records) do
  local p, id, x = r.p, r.id, r.x
  local key = p.k .. id
  know(p.base)
  know(p)
  for from = r.from, r.to, CHUNK do
    call('HSET', key, unpack(ARGV, from, min(from + CHUNK - 1, r.to)))
  end
  if x.pid then
    local pp = find_job(queue_place(x.pq), x.pid) or queue_place(x.pq)
    r.parent_key = pp.k .. x.pid
    local h = call('HGET', key, 'opts')
    call('HSET', key, 'parentKey', r.parent_key, 'parent', parent_json(r.parent_key, x.po), 'opts', with_parent(h, r.parent_key))
  end
  if has_ended(r.state) then
    local set = p[r.state]
    local last = call('ZREVRANGEBYSCORE', set, '(' .. int(r.finished + 1), int(r.finished), 'WITHSCORES', 'LIMIT', 0, 1)
    local score = last[2] and min(tonumber(last[2]) + 1 / 4096, r.finished + 4095 / 4096) or r.finished
    call('ZADD', set, fmt('%.17g', score), id)
  elseif r.state == 'delayed' then
    put_delayed(p, id, r.due or now)
  elseif r.state == 'waiting-children' then
    put_now(p, p.parents, id)
  else
    put_behind(p, id, x.p or 0)
  end
  if x.k and not has_ended(r.state) and not get(p.base.k .. 'de:' .. x.k) then
    call('SET', p.base.k .. 'de:' .. x.k, id)
  end
end
for _, r in ipairs(records) do
  if r.parent_key then
    -- The parent may have been written in another place of its queue than was known then.
    local _, parent_id = split(r.parent_key)
    local pp = find_job(split(r.parent_key), parent_id)
    if pp and pp.k .. parent_id ~= r.parent_key then
      local key = r.p.k .. r.id
      r.parent_key = pp.k .. parent_id
      call('HSET', key, 'parentKey', r.parent_key, 'parent', parent_json(r.parent_key, r.x.po),
        'opts', with_parent(without_parent(call('HGET', key, 'opts')), r.parent_key))
    end
    reunite(r.parent_key, r.p.k .. r.id)
  end
end
local looked = {}
for _, r in ipairs(records) do
  local b = r.p.base
  if not looked[b] then
    looked[b] = true
    local waiting = call('HGETALL', b.k .. 'wm:orphans')
    for i = 1, #waiting, 2 do
      local child_key, parent_id = waiting[i], waiting[i + 1]
      local pp = find_job(b, parent_id)
      if pp then
        call('HDEL', b.k .. 'wm:orphans', child_key)
        reunite(pp.k .. parent_id, child_key)
      end
    end
  end
end
wake()
return { #records }
