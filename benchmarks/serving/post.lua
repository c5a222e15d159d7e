-- wrk -s post.lua URL -- FILE CONTENT_TYPE [stages]: post the file again and again; a line of JSON at the end.
-- With `stages` it also reads the Server-Timing of each answer and tells the median of the engine's part of it.

local threads = {}
local engine = { transform = true, backbone = true, rpn = true, roi_head = true, postprocess = true }

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method = "POST"
   wrk.body = file:read("*a")
   file:close()
   wrk.headers["Content-Type"] = args[2]
   wrk.headers["Accept"] = "application/json"
   milliseconds = {}
   if args[3] == "stages" then
      function response(status, headers, body)
         local timing = headers["Server-Timing"] or headers["server-timing"]
         if status == 200 and timing then
            local sum = 0
            for stage, spent in timing:gmatch("([%w_]+);dur=([%d%.e+-]+)") do
               if engine[stage] then sum = sum + tonumber(spent) end
            end
            table.insert(milliseconds, sum)
         end
      end
   end
end

function done(summary, latency, requests)
   local spent = {}
   for _, thread in ipairs(threads) do
      for _, value in ipairs(thread:get("milliseconds")) do table.insert(spent, value) end
   end
   table.sort(spent)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests": %d, "seconds": %.6f, "p50": %.6f, "p95": %.6f, "p99": %.6f, "most": %.6f, '
         .. '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d, "engine": %s}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(95) / 1e6,
      latency:percentile(99) / 1e6, latency.max / 1e6, errors.connect, errors.read, errors.write, errors.status,
      errors.timeout, #spent > 0 and string.format("%.6f", spent[math.ceil(#spent / 2)] / 1e3) or "null"))
end
