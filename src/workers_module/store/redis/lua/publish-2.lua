--[[
Appends events of the application's own.

KEYS     see core
ARGV[4…] for each: how many texts follow, then the type, and fields and values

Returns  nothing
]]
local base = queue_place(QUEUE)
local at = 4
while at <= #ARGV do
  local n = tonumber(ARGV[at])
  emit(base, unpack(ARGV, at + 1, at + n))
  at = at + n + 1
end
