--[[
Changes jobs in place, each patch whole or not at all.

KEYS     see core
ARGV[4…] for each patch: id, token or "", fence, JSON (p priority, d delay, c cancel, x detach, k lines to keep, e empty the
         log first, hp has progress, hd has data, n lines), progress, data, and n lines

Returns  for each: 0 ok, 1 missing, 2 lease lost, 3 wrong state
]]
local base = queue_place(QUEUE)
local MAX_LINES = 1000
local FLAGS = { fpof = 'fail_parent', cpof = 'continue_parent', idof = 'ignore', rdof = 'remove' }

local function edit(at, x)
  local id, token, fence = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local p = find_job(base, id)
  if not p then
    return 1
  end
  local key = p.k .. id
  local state
  if token ~= '' or x.c or x.d then
    state = state_of(p, id)
  end
  if token ~= '' then
    local holder = get(key .. ':lock')
    if state ~= 'active' or (holder and holder ~= token) then
      return 2
    end
    if not holder and call('HGET', key, 'ats') ~= fence then
      return 2
    end
  end
  if (x.c and state ~= 'active') or (x.d and state ~= 'delayed') then
    return 3
  end
  if x.hp then
    call('HSET', key, 'progress', ARGV[at + 4])
    emit(p, 'progress', 'jobId', id, 'data', ARGV[at + 4])
  end
  if x.hd then
    call('HSET', key, 'data', ARGV[at + 5])
  end
  local logs = key .. ':logs'
  if x.e then
    call('DEL', logs)
  end
  for from = at + 6, at + 5 + x.n, CHUNK do
    call('RPUSH', logs, unpack(ARGV, from, min(from + CHUNK - 1, at + 5 + x.n)))
  end
  if x.n > 0 or x.k then
    local keep = min(x.k or MAX_LINES, MAX_LINES)
    if keep == 0 then
      call('DEL', logs)
    else
      call('LTRIM', logs, -keep, -1)
    end
  end
  if x.p then
    local h = call('HMGET', key, 'priority', 'opts', 'wm:lifo')
    local before = tonumber(h[1]) or 0
    if before ~= x.p then
      state = state or state_of(p, id)
      call('HSET', key, 'priority', int(x.p))
      if state == 'waiting' or state == 'prioritized' then
        leave(p, id, state)
        if is_lifo(h[3], h[2]) then
          put_in_front(p, id, x.p)
        else
          put_behind(p, id, x.p)
        end
      end
    end
  end
  if x.d then
    call('ZREM', p.delayed, id)
    call('HSET', key, 'delay', int(x.d))
    put_delayed(p, id, now + x.d)
    emit(p, 'delayed', 'jobId', id, 'delay', int(now + x.d))
  end
  if x.c then
    call('HSET', key, 'wm:cancel', '1')
  end
  if x.x then
    local h = call('HMGET', key, 'parentKey', 'parent')
    if h[1] then
      child_gone(p, id, h[1], false)
      call('HDEL', key, 'parentKey', 'parent')
      local policy = FLAGS[policy_of(h[2]) or '']
      if policy then
        call('HSET', key, 'wm:policy', policy)
      end
    end
  end
  return 0
end

local results = {}
local at = 4
while at <= #ARGV do
  local x = cjson.decode(ARGV[at + 3])
  results[#results + 1] = edit(at, x)
  at = at + 6 + x.n
end
wake()
return results
