-- Health of a NIMModel or a NIMProxy for Argo CD; how to configure it: docs/operations.md.
local health = {status = "Progressing", message = "waiting for the operator"}

local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end

local found = {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end
local ready, stalled, reconciling = found.Ready, found.Stalled, found.Reconciling

if stalled ~= nil and stalled.status == "True" then
  health.status = "Degraded"
  health.message = stalled.reason .. ": " .. stalled.message
elseif ready == nil then
  return health
elseif ready.reason == "SwitchedOff" then
  health.status = "Suspended"
  health.message = ready.message
elseif ready.status == "True" and (reconciling == nil or reconciling.status ~= "True") then
  health.status = "Healthy"
  health.message = ready.message
else
  local why = ready.status == "True" and reconciling or ready
  health.message = why.reason .. ": " .. why.message
end
return health
