--[[
Changes a queue's settings and returns them.

KEYS     see core
ARGV[4]  JSON of the patch: pause (true, false), c (concurrency; 0 lifts it), m and w (rate: max and window; m 0 lifts it),
         e (cap of events), l (ms of a manual limit), k (deduplication key to forget); or "" to look only

Returns  paused, concurrency or "", max or "", window or "", cap, end of a manual limit or ""
]]
local base = queue_place(QUEUE)
local limiter = base.k .. 'limiter'

-- What older versions put aside while a queue was paused goes to the tail, before all that came since.
local function take_back(p)
  local paused = p.k .. 'paused'
  while call('EXISTS', paused) == 1 do
    local ids = call('LRANGE', paused, 0, CHUNK - 1)
    call('LTRIM', paused, #ids, -1)
    call('RPUSH', p.wait, unpack(ids))
  end
end

local function ring_all()
  for _, p in ipairs(every(base)) do
    if call('LLEN', p.wait) + call('ZCARD', p.prioritized) > 0 then
      p.rung = true
    else
      p.late = true
    end
  end
end

if ARGV[4] ~= '' then
  local x = cjson.decode(ARGV[4])
  know(base)
  if x.pause ~= nil and x.pause ~= settings(base).paused then
    for _, p in ipairs(every(base)) do
      if x.pause then
        call('HSET', p.meta, 'paused', '1')
        call('DEL', p.marker)
        for tag in string.gmatch(p.tags, '[^+]+') do
          call('DEL', base.k .. 'wm:marker:' .. tag)
        end
      else
        call('HDEL', p.meta, 'paused')
        take_back(p)
      end
    end
    base.settings.paused = x.pause
    emit(base, x.pause and 'paused' or 'resumed')
    if not x.pause then
      ring_all()
    end
  end
  if x.c == 0 then
    call('HDEL', base.meta, 'concurrency')
  elseif x.c then
    call('HSET', base.meta, 'concurrency', int(x.c))
  end
  if x.m == 0 then
    call('HDEL', base.meta, 'max', 'duration')
  elseif x.m then
    call('HSET', base.meta, 'max', int(x.m), 'duration', int(x.w))
  end
  if x.e then
    for _, p in ipairs(every(base)) do
      call('HSET', p.meta, 'opts.maxLenEvents', int(x.e))
    end
  end
  if x.l then
    put(limiter, int(MANUAL), x.l)
  end
  if x.k then
    call('DEL', base.k .. 'de:' .. x.k, base.k .. 'dn:' .. x.k)
  end
  base.settings = nil
  if x.c or x.m then
    ring_all()
  end
  wake()
end
local s = settings(base)
local left = ttl(limiter)
local until_ = ''
if left > 0 and (tonumber(call('GET', limiter)) or 0) >= MANUAL then
  until_ = int(now + left)
end
return {
  s.paused and 1 or 0, s.concurrency and int(s.concurrency) or '', s.max and int(s.max) or '',
  s.duration and int(s.duration) or '', int(s.cap), until_,
}
