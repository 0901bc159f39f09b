-- SPDX-License-Identifier: Apache-2.0
--
-- droidtap.lua: whose a packet is, as droidtap's agent wrote it into the packet's comment, as fields for columns and
-- filters: droidtap.uid, droidtap.app, droidtap.pid, droidtap.comm. Wireshark and tshark 3.4 and later; see README.md.
--
-- The comment is one line, "uid=10123 app=com.example,com.other pid=4242 comm=some name". What is not known is left out,
-- comm is the last since it may hold anything, and uid=unknown stands for an owner that was not found.

local droidtap = Proto("droidtap", "droidtap: owner of the packet")

local uid = ProtoField.uint32("droidtap.uid", "User id", base.DEC)
local app = ProtoField.string("droidtap.app", "App")
local pid = ProtoField.uint32("droidtap.pid", "Process id", base.DEC)
local comm = ProtoField.string("droidtap.comm", "Process")
local frame = ProtoField.framenum("droidtap.frame", "Told by packet", base.NONE)
droidtap.fields = { uid, app, pid, comm, frame }

local built = Field.new("frame.number") -- there wherever fields are
local comments = Field.new("frame.comment")
local addresses = {
    { Field.new("ip.src"), Field.new("ip.dst") },
    { Field.new("ipv6.src"), Field.new("ipv6.dst") },
}
local transports = {
    { "tcp", Field.new("tcp.srcport"), Field.new("tcp.dstport") },
    { "udp", Field.new("udp.srcport"), Field.new("udp.dstport") },
}
local echoes = {
    { "icmp", Field.new("icmp.ident") },
    { "icmpv6", Field.new("icmpv6.echo.identifier") },
}
local icmp_type, icmpv6_type = Field.new("icmp.type"), Field.new("icmpv6.type")
local more, offset, ident = Field.new("ip.flags.mf"), Field.new("ip.frag_offset"), Field.new("ip.id")
local ident6 = Field.new("ipv6.fraghdr.ident")
local protocols = { Field.new("ip.proto"), Field.new("ipv6.nxt") }

-- number returns that of some digits, nil if it is more than most.
local function number(digits, most)
    local n = digits:match("^%d%d?%d?%d?%d?%d?%d?%d?%d?%d?$") and tonumber(digits)
    return n and n <= most and n or nil
end

-- parse returns the owner that a comment tells, nil if it is another comment: the agent writes others, and so do people.
local function parse(comment)
    local first, rest = comment:match("^uid=(%w+)(.*)$")
    local owner = { text = comment, apps = {} }
    if not first or comment:find("[\r\n]") then
        return nil
    end
    owner.uid = number(first, 0xffffffff)
    if not owner.uid and first ~= "unknown" then
        return nil
    end
    while rest ~= "" do
        local key, value, behind = rest:match("^ (%l+)=([^ ]*)(.*)$")
        if not key then
            return nil
        elseif key == "comm" then
            owner.comm = rest:sub(#" comm=" + 1)
            break
        elseif key == "pid" then
            owner.pid = number(value, 0x7fffffff)
        elseif key == "app" then
            for name in value:gmatch("[^,]+") do
                owner.apps[#owner.apps + 1] = name
            end
        end
        rest = behind -- a key of a later version is passed over
    end
    return owner
end

-- own returns the owner that the packet's own comments tell, nil if none does.
local function own()
    for _, comment in ipairs({ comments() }) do
        local owner = parse(tostring(comment.value))
        if owner then
            return owner
        end
    end
    return nil
end

-- pick returns the first or the last of a field's values in the packet, nil if there is none. icmp.ident is there twice,
-- big-endian and little-endian: the first of them counts.
local function pick(field, last)
    local values = { field() }
    local at = last and #values or 1
    while at > 1 and values[at - 1].offset == values[at].offset do
        at = at - 1
    end
    return values[at]
end

-- header returns the two addresses of the outermost or the innermost IP header.
local function header(inner)
    local found, src, dst
    for _, pair in ipairs(addresses) do
        local s, d = pick(pair[1], inner), pick(pair[2], inner)
        if s and d and (not found or (s.offset > found) == inner) then
            found, src, dst = s.offset, tostring(s.value), tostring(d.value)
        end
    end
    return src, dst
end

-- quotes tells whether the packet is an ICMP error: it belongs to the flow of the packet that it quotes.
local function quotes()
    local v4, v6 = icmp_type(), icmpv6_type()
    local kind = v4 and v4.value
    return kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12 or (v6 ~= nil and v6.value < 128)
end

-- flow returns what is the same for all packets of a flow in both directions, nil if the packet is of none.
local function flow()
    local inner = quotes()
    local src, dst = header(inner)
    if not src then
        return nil
    end
    for _, t in ipairs(transports) do
        local from, to = pick(t[2], inner), pick(t[3], inner)
        if from and to then
            local a, b = src .. " " .. from.value, dst .. " " .. to.value
            return t[1] .. " " .. (a < b and a .. " " .. b or b .. " " .. a)
        end
    end
    local peers = src < dst and src .. " " .. dst or dst .. " " .. src
    for _, e in ipairs(echoes) do
        local id = pick(e[2], inner)
        if id then
            return e[1] .. " " .. peers .. " " .. id.value
        end
    end
    -- ESP and the like; a fragment without ports is of no flow that could be told from others.
    local protocol = pick(protocols[1], inner) or pick(protocols[2], true)
    local n = protocol and protocol.value
    if not n or n == 1 or n == 6 or n == 17 or n == 44 or n == 58 then
        return nil
    end
    return n .. " " .. peers
end

-- datagram returns what is the same for all fragments of a datagram, nil for what is none.
local function datagram()
    local mf, at, id, id6 = more(), offset(), ident(), ident6()
    local fragment = mf and at and (mf.value == true or mf.value == 1 or at.value > 0)
    local of = id6 or fragment and id
    if not of then
        return nil
    end
    local src, dst = header(false)
    return src and "fragment " .. src .. " " .. dst .. " " .. of.value
end

local owners -- of packets by number, as the first pass found them: {owner, number of the packet that tells it}
local flows -- by flow or datagram: the same; row: so many packets in a row told it, 0: one told none

function droidtap.init()
    owners, flows = {}, {}
end

-- follow returns whose a packet is that is seen for the first time, from its own comment or from earlier packets of its
-- flow (--comments first). A flow of which three packets in a row say the same is one of --comments all, even if it is seen
-- on two interfaces: there a packet without a comment has no owner.
local function follow(n, owner)
    local keys = {}
    keys[1] = flow()
    keys[#keys + 1] = datagram()
    local told = owner and { owner = owner, number = n, row = 1 }
    for _, key in ipairs(keys) do
        local before = flows[key]
        if owner then
            if before and before.owner.text == owner.text and before.row > 0 then
                told.row = math.max(told.row, before.row + 1)
            end
        elseif before and before.row < 3 then
            before.row = 0
            told = told or before
        end
    end
    for _, key in ipairs(keys) do
        if owner or not flows[key] then
            flows[key] = told
        end
    end
    return told
end

function droidtap.dissector(tvb, pinfo, tree)
    local n = pinfo.number
    local owner = own()
    -- A read filter gives a number to one packet after the other until one passes: the last one has it. tshark -2 builds no
    -- fields in its first pass where no filter asks for some, but its second pass is in order, too.
    if built() and (not pinfo.visited or owners[n] == nil) then
        owners[n] = follow(n, owner) or false
    end
    -- A comment that was edited since is believed.
    local known = owner and { owner = owner, number = n } or owners[n]
    if not known then
        return
    end
    owner = known.owner
    local item = tree:add(droidtap, tvb(0, 0)):set_generated()
    item:append_text(" (" .. owner.text .. ")")
    if owner.uid then
        item:add(uid, owner.uid):set_generated()
    end
    for _, name in ipairs(owner.apps) do
        item:add(app, name):set_generated()
    end
    if owner.pid then
        item:add(pid, owner.pid):set_generated()
    end
    if owner.comm then
        item:add(comm, owner.comm):set_generated()
    end
    if known.number ~= n then
        item:add(frame, known.number):set_generated()
    end
end

register_postdissector(droidtap)
-- Wireshark builds no fields in its first pass unless somebody listens who wants them all.
local listener = Listener.new("frame", nil, true)
function listener.packet() end
