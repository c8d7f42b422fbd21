--[[
Changes schedules, each change for itself.

KEYS     see core
ARGV[4…] for each change: kind, id, then
         put:  slot, JSON of the numbers and texts of the definition, its data, its opts, "1" when paused, and the job: the
               name of its place, name, data, opts, JSON as for add
         fire: from slot, slot, "1" to replace, and the job
         drop: nothing

Returns  for each: 1 when it did something, else 0
]]
local base = queue_place(QUEUE)
local repeats = base.k .. 'repeat'
-- In the order of the fields of the JSON array; an absent one is "".
local FIELDS = { 'name', 'pattern', 'every', 'offset', 'tz', 'startDate', 'endDate', 'limit', 'wm:extra' }

local function slot_id(id, slot)
  return 'repeat:' .. id .. ':' .. int(slot)
end

local function current_job(id)
  local slot = call('ZSCORE', repeats, id)
  local job = slot and slot_id(id, tonumber(slot))
  local p = job and find_job(base, job)
  return p, job, p and state_of(p, job)
end

local function read_job(at)
  return {
    p = place(ARGV[at]), name = ARGV[at + 1], data = ARGV[at + 2], opts = ARGV[at + 3],
    x = ARGV[at + 4] ~= '' and cjson.decode(ARGV[at + 4]) or {},
  }
end

local function add_slot(id, slot, job)
  local jid = slot_id(id, slot)
  if find_job(base, jid) then
    emit(base, 'duplicated', 'jobId', jid)
    return
  end
  call('HINCRBY', base.k .. 'repeat:' .. id, 'ic', 1)
  call('INCR', base.k .. 'id')
  know(job.p)
  job.x.du, job.x.s, job.x.k = slot, id, nil
  insert(job.p, jid, job)
end

-- Node counts late slots from a stored phase. A definition that names none gets that of its first slot, and a note that
-- this is not its own word.
local function phase_of(values, slot)
  local distance, own = tonumber(values[3]), tonumber(values[4]) or 0
  if distance and own == 0 and slot % distance > 0 then
    return int(slot % distance)
  end
  return nil
end

local function put_schedule(at)
  local id, slot = ARGV[at + 1], tonumber(ARGV[at + 2])
  local values = cjson.decode(ARGV[at + 3])
  local data, opts, paused = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6] == '1'
  local key = base.k .. 'repeat:' .. id
  know(base)
  local count = 0
  if call('ZSCORE', repeats, id) then
    local old = call('HMGET', key, 'ic', 'wm:paused', 'data', 'opts', unpack(FIELDS))
    if call('HEXISTS', key, 'wm:phase') == 1 then
      old[8] = '0'
    end
    local same = (old[2] and true or false) == paused and (old[3] or '{}') == data and (old[4] or '{}') == opts
    for i = 1, #FIELDS do
      same = same and (old[4 + i] or '') == values[i]
    end
    if same then
      return 0
    end
    count = tonumber(old[1]) or 0
    local p, jid, state = current_job(id)
    if p and (state == 'waiting' or state == 'prioritized' or state == 'delayed') then
      remove_hard(p, jid, state)
      count = count - 1
    end
  end
  call('DEL', key)
  local h = { 'ic', int(count) }
  for i = 1, #FIELDS do
    if values[i] ~= '' then
      h[#h + 1], h[#h + 2] = FIELDS[i], values[i]
    end
  end
  local phase = phase_of(values, slot)
  if phase then
    h[#h + 1], h[#h + 2], h[#h + 3], h[#h + 4] = 'offset', phase, 'wm:phase', '1'
  end
  if data ~= '{}' then
    h[#h + 1], h[#h + 2] = 'data', data
  end
  if opts ~= '{}' then
    h[#h + 1], h[#h + 2] = 'opts', opts
  end
  if paused then
    h[#h + 1], h[#h + 2] = 'wm:paused', '1'
  end
  call('HSET', key, unpack(h))
  call('ZADD', repeats, int(slot), id)
  if not paused then
    add_slot(id, slot, read_job(at + 7))
  end
  return 1
end

local function fire(at)
  local id, from, slot, replace = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4] == '1'
  local current = tonumber(call('ZSCORE', repeats, id) or '')
  if not current or current ~= from or slot <= current then
    return 0
  end
  local h = call('HMGET', base.k .. 'repeat:' .. id, 'wm:paused', 'limit', 'ic')
  if h[1] then
    return 0
  end
  local p, jid, state = current_job(id)
  if replace and state ~= 'delayed' then
    return 0
  end
  local limit, count = tonumber(h[2]), tonumber(h[3]) or 0
  if limit and count - (replace and 1 or 0) >= limit then
    return 0
  end
  if replace then
    remove_hard(p, jid, state)
    call('HINCRBY', base.k .. 'repeat:' .. id, 'ic', -1)
  end
  call('ZADD', repeats, int(slot), id)
  add_slot(id, slot, read_job(at + 5))
  return 1
end

local function drop(at)
  local id = ARGV[at + 1]
  local p, jid, state = current_job(id)
  if call('ZREM', repeats, id) == 0 then
    return 0
  end
  call('DEL', base.k .. 'repeat:' .. id)
  if state == 'delayed' then
    remove(p, jid, false)
  end
  return 1
end

local done = {}
local at = 4
while at <= #ARGV do
  local kind = ARGV[at]
  if kind == 'put' then
    done[#done + 1] = put_schedule(at)
    at = at + 12
  elseif kind == 'fire' then
    done[#done + 1] = fire(at)
    at = at + 10
  else
    done[#done + 1] = drop(at)
    at = at + 2
  end
end
wake()
return done
