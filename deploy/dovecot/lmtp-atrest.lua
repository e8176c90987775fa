-- Dovecot (2.3 and 2.4) asks lmtp-atrest for the mail keys of a user who logs in.
--
-- Install as /etc/dovecot/lmtp-atrest.lua; dovecot-2.3.conf and dovecot-2.4.conf tell the rest.
-- Needs the packages dovecot-auth-lua and lua-socket. As a passdb it is asked twice: before the
-- site's own passdb, where it has a say about app passwords only, and after it has accepted the
-- password, which it never decides about. As a userdb it gives deliveries the public key. It holds
-- no state, and no error text ever holds a password or a key.

-- ---- what a site may have to change

local SOCKET = "/run/lmtp-atrest/unlock/dovecot.sock"
-- On 2.3 only: Dovecot's own mail_location once more, with all it says after the path (LAYOUT,
-- INBOX, INDEX, UTF-8), for there the index cache can only be moved together with it. %u, %n and %d
-- are filled in here as there. %h is not known yet: write ~.
local MAIL_LOCATION = "maildir:~/Maildir"

-- ---- talking to the unlock service: one JSON object a line, see docs/unlock-protocol.md

local unix = require "socket.unix"
local auth = dovecot.auth

local GREETING = '{"service":"lmtp-atrest unlock","version":1,"role":"dovecot"}'
-- The longest answer is one Argon2 run behind a full queue; the service says "busy" before that.
local TIMEOUT_SECONDS = 30
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
  return (text:gsub("..?.?", function(group)
    local a, b, c = group:byte(1, 3)
    local bits = a << 16 | (b or 0) << 8 | (c or 0)
    local out = ""
    for shift = 18, 0, -6 do
      local index = (bits >> shift & 63) + 1
      out = out .. ALPHABET:sub(index, index)
    end
    return out:sub(1, #group + 1) .. ("="):rep(3 - #group)
  end))
end

-- Names and secrets travel as base64; of all other words only harmless characters are passed on,
-- so that a value can never end its JSON string.
local function word(value)
  return (tostring(value or ""):gsub("[^%w%.:@_/-]", "?"))
end

local function exchange(connection, line)
  connection:settimeout(TIMEOUT_SECONDS)
  local done = connection:connect(SOCKET)
  if not done then return nil, "cannot connect to " .. SOCKET end
  if connection:receive("*l") ~= GREETING then return nil, "not an unlock socket: " .. SOCKET end
  if not connection:send(line .. "\n") then return nil, "the connection broke" end
  return connection:receive("*l"), "no answer"
end

-- The reply as a table, or nil and what went wrong. Replies on this socket are flat, with values
-- in printable ASCII without quotes and backslashes: three lines read them.
local function ask(line)
  local connection = unix()
  local answer, problem = exchange(connection, line)
  connection:close()
  if not answer then return nil, problem end
  local reply = {}
  for name, value in answer:gmatch('"([%w_]+)":"([^"]*)"') do reply[name] = value end
  return reply, "unlock service: " .. (reply.result or "unreadable answer")
end

-- 2.4 calls `protocol` what was `service`, and its settings have other names.
local function is_24(request)
  return request.service == nil
end

local function mechanism(request)
  return word(request.mechanism or request.mech)
end

-- Whether a passdb before us has accepted the password; else we are asked before the site's.
local function site_verified(request)
  return request.skip_password_check == true
end

local function line(operation, request, more, secret)
  local fields = {
    '"op":"' .. operation .. '"',
    '"name":"' .. base64(request.user) .. '"',
    '"service":"' .. word(request.protocol or request.service) .. '"',
    '"mechanism":"' .. mechanism(request) .. '"',
    '"source":"' .. word(request.remote_ip or request.rip) .. '"' .. more,
  }
  if secret then fields[#fields + 1] = '"secret":"' .. base64(secret) .. '"' end
  return "{" .. table.concat(fields, ",") .. "}"
end

local function login_line(request, secret)
  local more = ',"master":"' .. word(request.master_user) .. '","site_verified":'
  return line("login", request, more .. tostring(site_verified(request)), secret)
end

-- Phones write a capital at the beginning. A token that another mechanism sends is no password.
local function may_be_app_password(request, secret)
  local sent = mechanism(request):upper()
  return secret:sub(1, 3):lower() == "ap-" and (sent == "PLAIN" or sent == "LOGIN")
end

-- ---- turning replies into Dovecot's settings

-- What is written is encrypted. An account that is leaving gets none of this: what its sessions and
-- deliveries write is stored as for anybody else, and the private keys still read what was before.
local function add_public_key(settings, reply, request)
  if is_24(request) then
    settings.crypt_write_algorithm = "aes-256-gcm-sha256"
    settings.crypt_global_public_key_file = "inline:" .. reply.public_key
  else
    settings.mail_crypt_save_version = "2"
    settings.mail_crypt_global_public_key = reply.public_key
  end
end

-- What every session and delivery of an encrypted account gets. Dovecot's copies in clear (of large
-- messages, of headers for its index cache) stay in RAM.
local function public_settings(reply, request)
  local settings = { mail_temp_dir = reply.temp_dir }
  if reply.state ~= "leaving" then add_public_key(settings, reply, request) end
  if reply.cache ~= "ram" then
    settings.mail_never_cache_fields = "*"
  elseif is_24(request) then
    settings.mail_cache_path = reply.cache_dir
  else
    -- Dovecot would take the % words of a user's own `mail` as they stand, and for all users alike.
    settings.mail = request:var_expand(MAIL_LOCATION) .. ":INDEXCACHE=" .. reply.cache_dir
  end
  return settings
end

-- Each key is an encrypted PEM with a password for this login only: with debugging on, Dovecot
-- logs the key, but hides whatever has "pass" in its name.
local function add_private_keys(settings, reply, request)
  local names = {}
  for number = 1, tonumber(reply.keys) or 0 do
    local key, password = reply["private_key" .. number], reply["password" .. number]
    if is_24(request) then
      local prefix = "crypt_global_private_key/k" .. number .. "/crypt_private_key_"
      settings[prefix .. "file"] = "inline:" .. key
      settings[prefix .. "password"] = password
      names[number] = "k" .. number
    else
      local name = "mail_crypt_global_private_key" .. (number > 1 and number or "")
      settings[name] = key
      settings[name .. "_password"] = password
    end
  end
  if #names > 0 then settings.crypt_global_private_key = table.concat(names, ",") end
end

local function for_userdb(settings)
  local fields = {}
  for name, value in pairs(settings) do fields["userdb_" .. name] = value end
  return fields
end

-- "continue" in the configuration: the answer of the site's passdb stands.
local function not_for_us()
  return auth.PASSDB_RESULT_USER_UNKNOWN, "not for lmtp-atrest"
end

-- These end a login with "nologin" and show the reason. Others that ask Dovecot whether a password
-- is right, as an MTA does, would take the same answer for a yes.
local SHOW_REASONS = { imap = true, pop3 = true }

local function login_result(request, reply, problem)
  local result = reply and reply.result
  if result == "opened" or result == "closed" then
    local settings = public_settings(reply, request)
    add_private_keys(settings, reply, request)
    return auth.PASSDB_RESULT_OK, for_userdb(settings)
  elseif result == "accepted" then
    return auth.PASSDB_RESULT_OK, {}
  elseif result == "refused" and SHOW_REASONS[request.protocol or request.service] then
    return auth.PASSDB_RESULT_OK, { nologin = "y", reason = reply.reason }
  elseif result == "refused" then
    return auth.PASSDB_RESULT_USER_DISABLED, reply.reason
  elseif result == "not-enrolled" or result == "no-keys" or result == "wrong-secret" then
    return not_for_us()
  end
  return auth.PASSDB_RESULT_INTERNAL_FAILURE, problem
end

-- ---- what Dovecot calls

function auth_password_verify(request, password)
  if site_verified(request) then
    return login_result(request, ask(login_line(request, password)))
  end
  -- Before the site's passdb. What is no app password goes on to it, also if it looks like one. A
  -- failure goes on too, and Dovecot remembers it: whom the site refuses then hears "temporary".
  if not may_be_app_password(request, password) then return not_for_us() end
  return login_result(request, ask(line("app-login", request, "", password)))
end

-- Mechanisms that never send the password (CRAM, SCRAM), and other programs that look users up.
-- The service refuses an encrypted account's login with a reason: without it the user would get
-- in and see messages break off. Dovecot shows the reason only beside a password it can compare;
-- this one opens nothing, for nologin stands whether it matches or not. (Nothing is verified at
-- this point, so whoever tries such a mechanism learns that the account is encrypted.)
function auth_passdb_lookup(request)
  if not site_verified(request) then return not_for_us() end
  local code, fields = login_result(request, ask(login_line(request, nil)))
  if code == auth.PASSDB_RESULT_OK then fields.password = "{PLAIN}none" end
  return code, fields
end

function auth_userdb_lookup(request)
  local reply, problem = ask('{"op":"lookup","name":"' .. base64(request.user) .. '"}')
  local result = reply and reply.result
  if result == "found" then return auth.USERDB_RESULT_OK, public_settings(reply, request) end
  if result == "not-enrolled" then return auth.USERDB_RESULT_USER_UNKNOWN, "not enrolled" end
  return auth.USERDB_RESULT_INTERNAL_FAILURE, problem
end

-- Without this, `doveadm -A` fails: the site's own userdb lists the users.
function auth_userdb_iterate()
  return {}
end

function script_init()
  return 0
end

function script_deinit() end
