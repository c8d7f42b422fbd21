--[[
What all scripts share: where things lie, what time it is, and the moves every caller must make alike.

KEYS[1]  meta of the queue the call is about; every other key is in the same hash slot
KEYS[2]  its wm:tagsets
KEYS[3]  on a cluster: its wm:whole, which never exists, so that no script runs while the slot is on its way
ARGV[1]  prefix with its colon ("bull:")
ARGV[2]  the queue
ARGV[3]  the instant in ms, or "" for the server's own clock

A place is one BullMQ queue: the queue itself, or the part of it that holds the jobs with one set of tags ("mail@a+b").
Numbers go to Redis as text without exponent, and no JSON of a user is ever decoded to be written again.
]]
local call = redis.call
local fmt, sub, find, floor = string.format, string.sub, string.find, math.floor
local min, max = math.min, math.max
local PRE, QUEUE = ARGV[1], ARGV[2]
local FRONT = 4294967296
local MANUAL = 9007199254740991
local CRASHED = 'job stalled more than allowable limit'
local CHUNK = 1000

-- Writing a number costs more than most commands, and a batch has few different ones.
local TEXT = setmetatable({}, {
  __index = function(known, n)
    local text = fmt('%.0f', n)
    known[n] = text
    return text
  end,
})

local function int(n)
  return TEXT[n]
end

-- time: with a clock of the caller's, expiries lie far in the future, so that the server never acts on them

local GIVEN = ARGV[3] ~= ''
local FAR = 4398046511104
local now
if GIVEN then
  now = tonumber(ARGV[3])
else
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
end

local NOW = int(now)

local function expire(key, ms)
  if GIVEN then
    call('PEXPIREAT', key, int(now + ms + FAR))
  else
    call('PEXPIRE', key, int(ms))
  end
end

local function put(key, value, ms)
  if GIVEN then
    call('SET', key, value)
    expire(key, ms)
  else
    call('SET', key, value, 'PX', int(ms))
  end
end

-- How long a key has to live: negative when it is gone, or (-1) lives for ever.
local function ttl(key)
  if not GIVEN then
    return call('PTTL', key)
  end
  local at = call('PEXPIRETIME', key)
  if at < 0 then
    return at
  end
  local left = at - FAR - now
  if left <= 0 then
    call('DEL', key)
    return -2
  end
  return left
end

local function get(key)
  if GIVEN and ttl(key) == -2 then
    return false
  end
  return call('GET', key)
end

-- places

local places = {}

local function place(name)
  local p = places[name]
  if p then
    return p
  end
  local k = name .. ':'
  p = {
    name = name,
    k = k,
    wait = k .. 'wait',
    prioritized = k .. 'prioritized',
    delayed = k .. 'delayed',
    active = k .. 'active',
    completed = k .. 'completed',
    failed = k .. 'failed',
    parents = k .. 'waiting-children',
    events = k .. 'events',
    marker = k .. 'marker',
    meta = k .. 'meta',
    pc = k .. 'pc',
    stalled = k .. 'stalled',
    -- What is noted later: room for it is made at once.
    tags = '', base = false, tagged = false, settings = false, known = false, trimmed = false, rung = false, late = false,
    due = false,
  }
  places[name] = p
  local at = sub(name, 1, #PRE) == PRE and find(name, '@', #PRE + 1, true)
  if at then
    p.tags = sub(name, at + 1)
    p.base = place(sub(name, 1, at - 1))
  else
    p.base = p
  end
  return p
end

local function queue_place(queue)
  return place(PRE .. queue)
end

-- The place and the id in a job's key. Queues have no colon; ids may.
local function split(key)
  if sub(key, 1, #PRE) == PRE then
    local at = find(key, ':', #PRE + 1, true)
    if at then
      return place(sub(key, 1, at - 1)), sub(key, at + 1)
    end
  end
  local at = find(key, ':[^:]*$')
  return place(sub(key, 1, at - 1)), sub(key, at + 1)
end

-- The places of a queue's jobs with tags, sorted.
local function tagged(p)
  local b = p.base
  if not b.tagged then
    b.tagged = {}
    local sets = call('SMEMBERS', b.k .. 'wm:tagsets')
    table.sort(sets)
    for i = 1, #sets do
      b.tagged[i] = place(b.name .. '@' .. sets[i])
    end
  end
  return b.tagged
end

local function every(p)
  local b = p.base
  local all = { b }
  local others = tagged(b)
  for i = 1, #others do
    all[i + 1] = others[i]
  end
  return all
end

local function settings(p)
  local b = p.base
  if not b.settings then
    local m = call('HMGET', b.meta, 'paused', 'concurrency', 'max', 'duration', 'opts.maxLenEvents', 'version')
    b.settings = {
      paused = m[1] and true or false,
      concurrency = tonumber(m[2]),
      max = tonumber(m[3]),
      duration = tonumber(m[4]),
      cap = tonumber(m[5]) or 10000,
      known = m[5] and true or false,
      version = m[6],
    }
  end
  return b.settings
end

-- Whoever needs the cap of the events first writes it; a queue with meta is one that is listed.
local function know(p)
  local s = settings(p)
  if not s.known then
    call('HSET', p.base.meta, 'opts.maxLenEvents', '10000')
    s.known = true
  end
  if p ~= p.base and not p.known then
    p.known = true
    if call('SADD', p.base.k .. 'wm:tagsets', p.tags) == 1 then
      p.base.tagged = nil
      call('HSETNX', p.meta, 'opts.maxLenEvents', int(s.cap))
      if s.paused then
        call('HSET', p.meta, 'paused', '1')
      end
      -- Readers that sleep on the queue's own stream learn that there is another one.
      call('XADD', p.base.events, '*', 'event', 'wm:tagsets')
    end
  end
end

local function emit(p, ...)
  if p.trimmed then
    call('XADD', p.events, '*', 'event', ...)
  else
    p.trimmed = true
    call('XADD', p.events, 'MAXLEN', '~', int(settings(p).cap), '*', 'event', ...)
  end
end

-- waking

local function total_active(p)
  local n = 0
  for _, one in ipairs(every(p)) do
    n = n + call('LLEN', one.active)
  end
  return n
end

local function maxed(p)
  local s = settings(p)
  return s.paused or (s.concurrency and total_active(p) >= s.concurrency) or false
end

local function mark(p, score, member)
  call('ZADD', p.marker, score, member)
  if p ~= p.base then
    for tag in string.gmatch(p.tags, '[^+]+') do
      call('ZADD', p.base.k .. 'wm:marker:' .. tag, score, member)
    end
  end
end

local function next_due(p)
  local first = call('ZRANGE', p.delayed, 0, 0, 'WITHSCORES')
  return first[2] and floor(tonumber(first[2]) / 4096) or nil
end

-- Ends every script that may have made jobs ready: one marker for each place, however many jobs there are.
local function wake()
  for _, p in pairs(places) do
    if p.late then
      local due = next_due(p)
      if due then
        mark(p, int(due), '1')
      end
    end
    if p.rung and not maxed(p) then
      mark(p, '0', '0')
    end
  end
end
