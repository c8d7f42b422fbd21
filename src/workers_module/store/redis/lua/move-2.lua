--[[
Moves or deletes jobs: those named, or the oldest of some states, a bounded piece of them a call.

KEYS     see core
ARGV[4]  remove, retry, promote or fail
ARGV[5]  remove: "1" with pending children; retry: "1" counts attempts from zero; fail: the reason
ARGV[6]  remove: "1" hard; fail: the trace or ""
ARGV[7]  "ids": ARGV[8…] are they
         "states": ARGV[8] where to go on (index of the state:place in its list), ARGV[9] the most to choose,
         ARGV[10] only those last touched before this instant or "", ARGV[11] how many states, the states, the names

Returns  ids: moved ids, and for a single one that is refused the state it is in, or "missing"
         states: moved ids, how many were chosen, where to go on or ""
]]
local base = queue_place(QUEUE)
local ACTION, FIRST, SECOND = ARGV[4], ARGV[5] == '1', ARGV[6] == '1'

local function may(p, id, state)
  if ACTION == 'retry' then
    return has_ended(state)
  elseif ACTION == 'promote' then
    return state == 'delayed'
  end
  if ACTION == 'fail' then
    return state ~= 'active' and not has_ended(state)
  end
  if state == 'active' or is_current(p, id, call('HGET', p.k .. id, 'rjk')) then
    return false
  end
  if FIRST and not SECOND and pending(p.k .. id) > 0 then
    for _, one in ipairs(family(p, id)) do
      if state_of(one.p, one.id) == 'active' then
        return false
      end
    end
  end
  return true
end

local function retry(p, id, state)
  local key = p.k .. id
  local h = call('HMGET', key, 'priority', 'opts', 'wm:lifo', 'parentKey')
  leave(p, id, state)
  call('HDEL', key, 'finishedOn', 'processedOn', state == 'failed' and 'failedReason' or 'returnvalue')
  if FIRST then
    call('HDEL', key, 'atm')
  end
  local parent_key = h[4]
  if parent_key and call('EXISTS', parent_key) == 1 then
    local was = call('HDEL', parent_key .. ':processed', key) + call('HDEL', parent_key .. ':failed', key)
      + call('ZREM', parent_key .. ':unsuccessful', key)
    if was > 0 then
      call('SADD', parent_key .. ':dependencies', key)
    end
  end
  queue_up(p, id, tonumber(h[1]) or 0, is_lifo(h[3], h[2]))
  emit(p, 'waiting', 'jobId', id, 'prev', state)
end

local function move(p, id, state)
  if ACTION == 'remove' then
    if SECOND then
      remove_hard(p, id, state)
    else
      remove(p, id, FIRST)
    end
  elseif ACTION == 'retry' then
    retry(p, id, state)
  elseif ACTION == 'promote' then
    local key = p.k .. id
    leave(p, id, state)
    call('HSET', key, 'delay', '0')
    put_behind(p, id, tonumber(call('HGET', key, 'priority')) or 0)
    emit(p, 'waiting', 'jobId', id, 'prev', 'delayed')
  else
    local h = fields_of(p.k .. id, FAIL_FIELDS)
    leave(p, id, state)
    fail(p, id, h, ARGV[5], ARGV[6], tonumber(h.atm) or 0, state)
  end
end

if ARGV[7] == 'ids' then
  local moved = {}
  for at = 8, #ARGV do
    local id = ARGV[at]
    local p = find_job(base, id)
    local state = p and state_of(p, id) or 'missing'
    if p and may(p, id, state) then
      move(p, id, state)
      moved[#moved + 1] = id
    elseif #ARGV == 8 then
      return { {}, state }
    end
  end
  drop_leases()
  wake()
  return { moved, '' }
end

local at_state, at_entry = string.match(ARGV[8], '^(%d+):(%d+)$')
at_state, at_entry = tonumber(at_state), tonumber(at_entry)
local most, older_than = tonumber(ARGV[9]), tonumber(ARGV[10])
local count_states = tonumber(ARGV[11])
local names
for at = 12 + count_states, #ARGV do
  names = names or {}
  names[ARGV[at]] = true
end

-- A piece of a queue's list of one state, the oldest first: tags by tags for ready jobs, by score for others.
local function piece(state, from, n)
  local all = every(base)
  local found = {}
  if state == 'waiting' or state == 'prioritized' then
    for _, p in ipairs(all) do
      local ids
      local size = state == 'waiting' and call('LLEN', p.wait) or call('ZCARD', p.prioritized)
      if from < size and #found < n then
        local to = min(from + n - #found, size) - 1
        if state == 'waiting' then
          ids = call('LRANGE', p.wait, -to - 1, -from - 1)
          for i = #ids, 1, -1 do
            found[#found + 1] = { p, ids[i] }
          end
        else
          ids = call('ZRANGE', p.prioritized, from, to)
          for i = 1, #ids do
            found[#found + 1] = { p, ids[i] }
          end
        end
      end
      from = max(0, from - size)
    end
    return found
  end
  local key_of = state == 'waiting-children' and 'parents' or state
  for _, p in ipairs(all) do
    local ids = call('ZRANGE', p[key_of], 0, from + n - 1, 'WITHSCORES')
    for i = 1, #ids, 2 do
      found[#found + 1] = { p, ids[i], tonumber(ids[i + 1]), #found }
    end
  end
  if #all > 1 then
    table.sort(found, function(a, c)
      if a[3] ~= c[3] then
        return a[3] < c[3]
      end
      return a[4] < c[4]
    end)
  end
  local part = {}
  for i = from + 1, min(from + n, #found) do
    part[#part + 1] = found[i]
  end
  return part
end

local chosen, next_at = {}, ''
local left = CHUNK
local i = at_state
while i <= count_states do
  local state = ARGV[11 + i]
  local from = i == at_state and at_entry or 0
  local found = state ~= 'active' and piece(state, from, left) or {}
  left = left - #found
  local took = 0
  for n, one in ipairs(found) do
    if #chosen >= most then
      break
    end
    local p, id = one[1], one[2]
    local h = call('HMGET', p.k .. id, 'name', 'finishedOn', 'processedOn', 'timestamp')
    local touched = tonumber(h[2] or h[3] or h[4]) or 0
    if h[1] and not (older_than and touched >= older_than) and not (names and not names[h[1]]) and may(p, id, state) then
      chosen[#chosen + 1] = { p, id, state }
      took = took + 1
    end
  end
  if #chosen >= most then
    break
  end
  if left <= 0 then
    -- What was chosen leaves this list before the next look at it.
    next_at = i .. ':' .. int(from + #found - took)
    break
  end
  i = i + 1
end

local moved = {}
for _, one in ipairs(chosen) do
  local p, id = one[1], one[2]
  -- An earlier one may have taken this one along.
  if call('EXISTS', p.k .. id) == 1 then
    local state = state_of(p, id)
    if may(p, id, state) then
      move(p, id, state)
      moved[#moved + 1] = id
    end
  end
end
if #moved > 0 and older_than and ACTION == 'remove' and SECOND then
  emit(base, 'cleaned', 'count', int(#moved))
end
drop_leases()
wake()
return { moved, #chosen, next_at }
