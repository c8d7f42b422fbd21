--[[
Checks a queue's collections against its jobs, or its keys against its collections, a piece a call.

KEYS     see core
ARGV[4]  tags of the place
ARGV[5]  the state to look through: waiting, prioritized, delayed, active, completed, failed, waiting-children; then
         ARGV[6] from, ARGV[7] how many
         or "keys"; then two for each: "job" and its id, a part of a job ("logs", …) and its id, "de" and what it is of

Returns  how many were looked at, and problems: invariant, job id or "", text
]]
local base = queue_place(QUEUE)
local p = ARGV[4] == '' and base or place(base.name .. '@' .. ARGV[4])
local STATE = ARGV[5]
local found = {}
local function problem(invariant, id, text)
  found[#found + 1] = { invariant, id, text }
end

local function is_listed(id)
  for _, set in ipairs({ p.completed, p.failed, p.delayed, p.prioritized, p.parents }) do
    if call('ZSCORE', set, id) then
      return true
    end
  end
  for _, list in ipairs({ p.active, p.wait, p.k .. 'paused' }) do
    if call('LPOS', list, id) then
      return true
    end
  end
  return false
end

if STATE == 'keys' then
  for at = 6, #ARGV, 2 do
    local what, id = ARGV[at], ARGV[at + 1]
    if what == 'job' then
      if call('EXISTS', p.k .. id) == 1 and not is_listed(id) then
        problem('I1', id, 'is there and listed nowhere')
      end
    elseif what == 'de' then
      local key = p.k .. 'de:' .. id
      local owner = call('PTTL', key) == -1 and call('GET', key)
      if owner and not find_job(p, owner) then
        problem('I7', '', 'deduplication key ' .. id .. ' belongs to job ' .. owner .. ', which is gone')
      end
    elseif call('EXISTS', p.k .. id .. ':' .. what) == 1 and call('EXISTS', p.k .. id) == 0 then
      problem('I7', id, 'has ' .. what .. ' but is not there')
    end
  end
  return { 0, found }
end

local KEY = { waiting = 'wait', ['waiting-children'] = 'parents' }
local key = p[KEY[STATE] or STATE]
local from, to = tonumber(ARGV[6]), tonumber(ARGV[6]) + tonumber(ARGV[7]) - 1
local list = STATE == 'waiting' or STATE == 'active'
local ids = list and call('LRANGE', key, from, to) or call('ZRANGE', key, from, to)
local SETS = { 'completed', 'failed', 'delayed', 'prioritized', 'parents' }
local seen = {}
for _, id in ipairs(ids) do
  local j = p.k .. id
  local h = call('HMGET', j, 'name', 'finishedOn', 'priority', 'ats', 'stc')
  if not h[1] then
    problem('I1', id, 'is listed as ' .. STATE .. ' but is not there')
  else
    if seen[id] then
      problem('I1', id, 'is listed twice as ' .. STATE)
    end
    seen[id] = true
    for i = 1, #SETS do
      if p[SETS[i]] ~= key and call('ZSCORE', p[SETS[i]], id) then
        problem('I1', id, 'is listed as ' .. STATE .. ' and in ' .. SETS[i])
      end
    end
    if STATE ~= 'active' and call('LPOS', p.active, id) then
      problem('I1', id, 'is listed as ' .. STATE .. ' and in active')
    end
    local ended = has_ended(STATE)
    if STATE ~= 'active' and get(j .. ':lock') then
      problem(ended and 'I4' or 'I3', id, 'is ' .. STATE .. ' and has a lease')
    end
    if ended ~= (h[2] and true or false) then
      problem('I4', id, 'is ' .. STATE .. ' and its end is ' .. (h[2] or 'not set'))
    end
    local priority = tonumber(h[3]) or 0
    if (STATE == 'waiting' and priority > 0) or (STATE == 'prioritized' and priority == 0) then
      problem('I1', id, 'is ' .. STATE .. ' with priority ' .. int(priority))
    end
    for _, child in ipairs(call('SMEMBERS', j .. ':dependencies')) do
      if call('EXISTS', child) == 0 then
        problem('I7', id, 'waits for ' .. child .. ', which is gone')
      end
    end
    if STATE == 'waiting-children' and pending(j) == 0 then
      problem('I6', id, 'waits for children, and none is pending')
    end
  end
end
return { #ids, found }
