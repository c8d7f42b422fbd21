--[[
Deletes a queue, a bounded number of jobs a call.

KEYS     see core
ARGV[4]  "1": active jobs too
ARGV[5]  how many jobs at most

Returns  1 when nothing is left, 0 when there is more; or an id that is active and stands in the way
]]
local base = queue_place(QUEUE)
local room = tonumber(ARGV[5])
local all = every(base)
if ARGV[4] ~= '1' then
  for _, p in ipairs(all) do
    local id = call('LINDEX', p.active, -1)
    if id then
      return id
    end
  end
end

for _, schedule in ipairs(call('ZRANGE', base.k .. 'repeat', 0, -1)) do
  call('DEL', base.k .. 'repeat:' .. schedule)
end
call('DEL', base.k .. 'repeat')

-- A list entry is taken out first, so that even one without a job goes.
local function clear(p, ids, state)
  for _, id in ipairs(ids) do
    remove_hard(p, id, state)
    if state == 'active' then
      call('DEL', p.k .. id .. ':lock')
    end
    room = room - 1
  end
end

for _, p in ipairs(all) do
  local sources = {
    { p.wait, 'waiting' }, { p.k .. 'paused', 'waiting' }, { p.prioritized, 'prioritized' }, { p.delayed, 'delayed' },
    { p.active, 'active' }, { p.completed, 'completed' }, { p.failed, 'failed' }, { p.parents, 'waiting-children' },
  }
  for _, source in ipairs(sources) do
    while room > 0 do
      local n = min(room, CHUNK) - 1
      local list = source[2] == 'waiting' or source[2] == 'active'
      local ids = list and call('LRANGE', source[1], -n - 1, -1) or call('ZRANGE', source[1], 0, n)
      if #ids == 0 then
        break
      end
      clear(p, ids, source[2])
    end
  end
end
for _, p in ipairs(all) do
  p.rung, p.late = false, false
  if call('EXISTS', p.wait, p.k .. 'paused', p.prioritized, p.delayed, p.active, p.completed, p.failed, p.parents) > 0 then
    wake()
    return 0
  end
end
for _, p in ipairs(all) do
  for tag in string.gmatch(p.tags, '[^+]+') do
    call('DEL', base.k .. 'wm:marker:' .. tag)
  end
  call('DEL', p.events, p.k .. 'id', p.pc, p.marker, p.meta, p.stalled, p.k .. 'stalled-check', p.k .. 'limiter',
    p.k .. 'priority', p.k .. 'metrics:completed', p.k .. 'metrics:failed', p.k .. 'metrics:completed:data',
    p.k .. 'metrics:failed:data', p.k .. 'wm:tagsets', p.k .. 'wm:more', p.k .. 'wm:orphans')
end
wake()
return 1
