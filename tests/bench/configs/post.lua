-- wrk's request: a chat completion whose JSON body has exactly the bytes of the first argument.
-- Members come as nemo-microservices and openai 1.x send them, `messages` before `model`, or, with a
-- second argument, `model` first as openai 3.x does. The text has the escapes that prompts have.
-- wrk formats the request once, after init, because no function `request` is defined.
function init(args)
  local head = '{"messages":[{"role":"user","content":"'
  local tail = '"}],"model":"bench/model","max_tokens":64}'
  if args[2] then
    head = '{"model":"bench/model","messages":[{"role":"user","content":"'
    tail = '"}],"max_tokens":64}'
  end
  local sentence = [[Then she said: \"Add up the third column of this table.\"\n]]
  local free = tonumber(args[1]) - #head - #tail
  local text = string.rep(sentence, math.floor(free / #sentence))
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.body = head .. text .. string.rep("x", free - #text) .. tail
end
