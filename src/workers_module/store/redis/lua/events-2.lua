--[[
Reads events behind a cursor, of the queue's own stream and of those of its tags.

KEYS     see core
ARGV[4]  how many of each stream
ARGV[5…] tags ("" for the queue itself) and the last id read, in pairs; "$" for the last one there is

Returns  for each stream: tags, last id read, whether events behind the cursor are gone, entries
]]
local base = queue_place(QUEUE)
local after = {}
for at = 5, #ARGV, 2 do
  after[ARGV[at]] = ARGV[at + 1]
end
local fresh = after[''] == '$'

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function is_after(a, b)
  local a1, a2 = parts(a)
  local b1, b2 = parts(b)
  return a1 > b1 or (a1 == b1 and a2 > b2)
end

local function info(p)
  local found = {}
  local flat = call('XINFO', 'STREAM', p.events)
  for i = 1, #flat, 2 do
    found[flat[i]] = flat[i + 1]
  end
  return found
end

local streams = {}
for _, p in ipairs(every(base)) do
  local from = after[p.tags]
  local exists = call('EXISTS', p.events) == 1
  if fresh then
    from = exists and info(p)['last-generated-id'] or '0-0'
    streams[#streams + 1] = { p.tags, from, 0, {} }
  else
    -- A set of tags that came after the cursor: all of its events are new.
    local known = from and from ~= '0-0'
    from = from or '0-0'
    local entries = exists and call('XRANGE', p.events, '(' .. from, '+', 'COUNT', ARGV[4]) or {}
    local gap = 0
    if exists then
      local first = call('XRANGE', p.events, '-', '+', 'COUNT', 1)[1]
      local lost
      if known then
        lost = first and is_after(first[1], from) or (not first and is_after(info(p)['last-generated-id'], from))
      else
        local has = info(p)
        lost = has['entries-added'] and has['entries-added'] > has['length']
      end
      gap = lost and 1 or 0
    elseif known then
      -- The queue was deleted; what comes next is another one's.
      gap = 1
      from = '0-0'
    end
    local last = #entries > 0 and entries[#entries][1] or from
    if gap == 1 and #entries == 0 and exists then
      last = info(p)['last-generated-id']
    end
    streams[#streams + 1] = { p.tags, last, gap, entries }
  end
end
return streams
