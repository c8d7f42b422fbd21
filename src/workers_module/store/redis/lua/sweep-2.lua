--[[
Takes back abandoned jobs, makes due jobs ready, applies age limits, trims events, and names idle schedules.

A first look puts active jobs without a lease into the set "stalled"; what is still there without a lease at the next look
is abandoned. What one call cannot finish the next goes on with ("wm:more"), without a look of its own.

KEYS     see core
ARGV[4]  interval in ms
ARGV[5]  lost leases after which a job is to be failed
ARGV[6]  age in ms of completed jobs to remove, or ""
ARGV[7]  the same of failed jobs

Returns  recovered ids, idle schedules, wake_at or "", more, now
]]
local base = queue_place(QUEUE)
local check, going_on = base.k .. 'stalled-check', base.k .. 'wm:more'
local interval, most_crashes = tonumber(ARGV[4]), tonumber(ARGV[5])
local all = every(base)

local function earliest_due()
  local due
  for _, p in ipairs(all) do
    local first = next_due(p)
    due = first and min(first, due or first) or due
  end
  return due and int(due) or ''
end

if call('EXISTS', base.meta, base.events) == 0 then
  return { {}, {}, '', 0, NOW }
end
local more_before = get(going_on)
local last = tonumber(get(check) or '')
if not more_before and last and last <= now and now < last + interval then
  return { {}, {}, earliest_due(), 0, NOW }
end
if not more_before then
  put(check, NOW, interval)
end

for _, p in ipairs(all) do
  p.trimmed = true
  call('XTRIM', p.events, 'MAXLEN', '~', int(settings(p).cap))
end

-- abandoned jobs

local recovered, more = {}, false

local function recover(p, id, lock)
  local key = p.k .. id
  local h = call('HMGET', key, 'priority', 'stc', 'rjk', 'wm:oc', 'name')
  call('DEL', lock)
  call('HDEL', key, 'wm:cancel')
  if not h[5] then
    put_in_front(p, id, 0)
    return
  end
  local crashes = (tonumber(h[2]) or 0) + 1
  local schedule = h[3]
  local spared = schedule
    and (call('EXISTS', base.k .. 'repeat:' .. schedule) == 1 or call('ZSCORE', base.k .. 'repeat', schedule))
  call('HSET', key, 'stc', int(crashes))
  if h[4] == 'fail' or (crashes >= most_crashes and not spared) then
    call('HSET', key, 'defa', CRASHED)
  end
  put_in_front(p, id, tonumber(h[1]) or 0)
  emit(p, 'waiting', 'jobId', id, 'prev', 'active')
  emit(p, 'stalled', 'jobId', id)
end

-- Abandoned jobs of all places, each place's from the newest to the oldest.
local abandoned = {}

local function look(p)
  local suspects = call('SMEMBERS', p.stalled)
  local seen = {}
  for i = 1, #suspects do
    seen[suspects[i]] = true
  end
  local active = call('LRANGE', p.active, 0, -1)
  local lapsed, left_over = {}, {}
  local before = #abandoned
  for i = 1, #active do
    local id = active[i]
    if (seen[id] or not more_before) and not get(p.k .. id .. ':lock') then
      if not seen[id] then
        lapsed[#lapsed + 1] = id
      elseif #abandoned < CHUNK then
        abandoned[#abandoned + 1] = { p = p, id = id, at = #abandoned }
      else
        more = true
        left_over[#left_over + 1] = id
      end
    end
  end
  for i = before + 1, #abandoned do
    call('LREM', p.active, 1, abandoned[i].id)
  end
  if more_before then
    for i = before + 1, #abandoned do
      call('SREM', p.stalled, abandoned[i].id)
    end
  else
    call('DEL', p.stalled)
    -- Those seen for the first time must not be taken for suspects by the call that goes on.
    lapsed = #left_over > 0 and left_over or lapsed
    for from = 1, #lapsed, CHUNK do
      call('SADD', p.stalled, unpack(lapsed, from, min(from + CHUNK - 1, #lapsed)))
    end
  end
end

-- From the last started to the first: each goes in front of the one before, so that the first runs first.
local function take_back()
  if #all > 1 then
    for i = 1, #abandoned do
      local one = abandoned[i]
      one.started = tonumber(call('HGET', one.p.k .. one.id, 'wm:seq')) or 0
    end
    table.sort(abandoned, function(a, b)
      if a.started ~= b.started then
        return a.started > b.started
      end
      return a.at < b.at
    end)
  end
  for i = 1, #abandoned do
    local p, id = abandoned[i].p, abandoned[i].id
    recover(p, id, p.k .. id .. ':lock')
    recovered[#abandoned - i + 1] = id
  end
end

for _, p in ipairs(all) do
  if not more_before or more_before == 'jobs' then
    look(p)
  end
end
take_back()
local what = more and 'jobs' or nil

-- the rest

-- A script cannot see how long it takes (its clock may stand still): all parts share one count of jobs.
local room = 2 * (CHUNK - #recovered)
for _, p in ipairs(all) do
  if room > 0 then
    room = room - promote(p, room)
  end
end
local function remove_older(state, age)
  if age ~= '' and room > 0 then
    room = room - trim(base, state, nil, now - tonumber(age), min(room, CHUNK))
  end
end

remove_older('completed', ARGV[6])
remove_older('failed', ARGV[7])
if room <= 0 then
  what = what or 'due'
end

-- Those whose slot is the oldest, as many as there is time for: a schedule that has stopped comes to stand among them.
local idle = {}
local slots = call('ZRANGE', base.k .. 'repeat', 0, 2 * CHUNK - 1, 'WITHSCORES')
for i = 1, #slots, 2 do
  local schedule = slots[i]
  if not call('HGET', base.k .. 'repeat:' .. schedule, 'wm:paused') then
    local id = 'repeat:' .. schedule .. ':' .. int(tonumber(slots[i + 1]))
    local p = find_job(base, id)
    if not p or call('ZSCORE', p.completed, id) or call('ZSCORE', p.failed, id) then
      idle[#idle + 1] = schedule
    end
  end
end

if what then
  put(going_on, what, 60000)
elseif more_before then
  call('DEL', going_on)
end

-- A set of tags without jobs for a day is forgotten.
if not GIVEN then
  for _, p in ipairs(tagged(base)) do
    local found = call('EXISTS', p.wait, p.prioritized, p.delayed, p.active, p.completed, p.failed, p.parents)
    if found == 0 then
      local newest = call('XREVRANGE', p.events, '+', '-', 'COUNT', 1)
      if not newest[1] or tonumber(string.match(newest[1][1], '^%d+')) < now - 86400000 then
        call('SREM', base.k .. 'wm:tagsets', p.tags)
        call('DEL', p.events, p.meta, p.marker, p.pc, p.stalled)
        p.rung, p.late = false, false
      end
    end
  end
end
wake()
return { recovered, idle, earliest_due(), what and 1 or 0, NOW }
