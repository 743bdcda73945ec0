-- What GitHub's Markdown leaves to the page is made here for HTML, Word and PDF alike: comments go, figures and tables get the
-- captions behind them and can be linked to, links to other files work from where the export lies (metadata `base`).
local WIDTH, HEIGHT = 16.0, 18.0 -- cm at most of a picture on an A4 page
local LINE, PADDING = 104, 3 -- letters of a table's text in a line of a Word page, and what a cell's margins take
local WORD = 30 -- letters of a word, beyond which it breaks rather than take the other columns' room
local LONG = 24 -- rows of a table that, with cells of two lines, no longer fits a page; with a caption a shorter one floats,
-- and where none floats, in the appendix, half as many may break
local STAYS = "#set figure(placement: none)\n" -- no float
local BREAKS = "#show figure.where(kind: table): set block(breakable: true)\n"
local SMALL = "#set text(9pt)\n#set par(leading: 0.55em)" -- references and what is behind them
local base = ""

local function refuse(...)
  io.stderr:write(string.format(...), "\n")
  os.exit(1)
end

local function raw(element)
  if element.text:match("^%s*<!%-%-.*%-%->%s*$") then return {} end
  if element.text:match("^<br%s*/?>$") then return pandoc.LineBreak() end
  refuse("Word and PDF would leave out the HTML %s: write it in Markdown.", element.text:match("[^\n]*"))
end

local function size(picture)
  local ok, _, data = pcall(pandoc.mediabag.fetch, picture.src)
  if picture.src:match("://") then refuse("%s lies in the network: save the picture in figures/.", picture.src) end
  if not ok then refuse("%s is missing: `git checkout %s`.", picture.src, picture.src) end
  local vector = picture.src:gsub("%.png$", ".svg")
  if FORMAT ~= "docx" and pcall(pandoc.mediabag.fetch, vector) then picture.src = vector end
  if FORMAT:match("html") then return picture end
  local found = pandoc.image.size(data)
  local wide, high = found.width, found.height
  local cm = math.min(WIDTH, HEIGHT * wide / high, wide / found.dpi_horz * 2.54)
  picture.attributes.width = string.format("%.2fcm", cm)
  return picture
end

-- a paragraph "Figure 7. ..." or "Table 3. ..." right behind a picture or a table is its caption
local function captions(blocks)
  local done = pandoc.Blocks({})
  for _, block in ipairs(blocks) do
    local before, text = done[#done], block.t == "Para" and pandoc.utils.stringify(block) or ""
    local kind, number = text:match("^(%u%l+) (%d+)%. ")
    if before and kind == before.t then
      before.identifier = kind:lower() .. "-" .. number
      block.content[1] = pandoc.Strong({table.unpack(block.content, 1, 3)})
      block.content:remove(2)
      block.content:remove(2)
      before.caption.long = {pandoc.Plain(block.content)}
    elseif text:match(":$") or text ~= "" and #block.content == 1 and block.content[1].t == "Strong" then -- stays with the next
      done:extend({pandoc.RawBlock("typst", "#block(sticky: true)["), block, pandoc.RawBlock("typst", "]")})
    else
      done:insert(block)
    end
  end
  return done
end

-- Word would make all columns alike: they get the width that their cells ask for, in small letters
local function fit_word(block, rows)
  local least, longest = {}, {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row.cells) do
      local text = pandoc.utils.stringify(cell.contents)
      longest[i] = math.max(longest[i] or 0, utf8.len(text) + PADDING)
      for word in text:gmatch("%S+") do least[i] = math.max(least[i] or PADDING, math.min(utf8.len(word), WORD) + PADDING) end
      local inlines = text == "" and {"\u{a0}"} or cell.contents[1].content
      cell.contents = {pandoc.Div({pandoc.Para(inlines)}, {["custom-style"] = "Table Text"})}
    end
  end
  local cap, sum, wide = math.max(table.unpack(longest)) + 1, math.huge, {}
  while sum > LINE and cap > PADDING do
    cap, sum = cap - 1, 0
    for i, n in ipairs(longest) do
      wide[i] = math.max(least[i] or PADDING, math.min(n, cap))
      sum = sum + wide[i]
    end
  end
  for i, n in ipairs(wide) do block.colspecs[i] = {block.colspecs[i][1], n / math.max(LINE, sum)} end
end

-- typst gives equal columns to cells of several lines: longer texts get more, so that a row's cells end alike
local function fit_typst(block, rows)
  local least, longest, all, sum = {}, {}, 0, 0
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row.cells) do
      local text = pandoc.utils.stringify(cell.contents)
      longest[i] = math.max(longest[i] or 0, utf8.len(text))
      for word in text:gmatch("[^%s-]+") do least[i] = math.max(least[i] or PADDING, utf8.len(word) + PADDING) end
    end
  end
  for _, n in ipairs(longest) do all = all + n end
  if all < 2 * LINE then return end
  for i, n in ipairs(longest) do longest[i] = math.max(least[i] or PADDING, LINE * n / all) end
  for _, n in ipairs(longest) do sum = sum + n end
  for i, n in ipairs(longest) do block.colspecs[i] = {block.colspecs[i][1], n / sum} end
end

local function fit_table(block)
  for i, column in ipairs(block.colspecs) do
    if column[1] == pandoc.AlignDefault then block.colspecs[i] = {pandoc.AlignLeft, column[2]} end
  end
  if pandoc.utils.stringify(pandoc.Blocks(block.head.rows[1] and block.head.rows[1].cells:map(function(c)
    return pandoc.Div(c.contents) end) or {})) == "" then block.head.rows = {} end
  for i, column in ipairs(block.colspecs) do -- a column without a number stands at the left, whatever the rule says
    local number = column[1] ~= pandoc.AlignRight
    for _, row in ipairs(block.bodies[1].body) do
      local text = row.cells[i] and pandoc.utils.stringify(row.cells[i].contents) or ""
      number = number or text:match("^%A?%A?%A?%A?%d")
    end
    if not number then block.colspecs[i] = {pandoc.AlignLeft, column[2]} end
  end
  local rows = block.head.rows .. block.bodies[1].body
  if FORMAT == "docx" then fit_word(block, rows) end
  if FORMAT == "typst" then fit_typst(block, rows) end
  local set = (#rows > LONG // 2 and BREAKS or "") .. ((#rows > LONG or #block.caption.long == 0) and STAYS or "")
  if FORMAT ~= "typst" or set == "" then return block end
  return {pandoc.RawBlock("typst", "#[\n" .. set), block, pandoc.RawBlock("typst", "]")}
end

local function link(element)
  if not element.target:match("^#") and not element.target:match("^%a+:") then element.target = base .. element.target end
  return element
end

local function command(inlines) -- a cell such as "zstd --ultra -22": these are no dashes and no minus signs
  if #inlines < 3 or inlines[1].t ~= "Str" or not inlines[1].text:match("^%l+$") then return end
  for i = 3, math.min(5, #inlines), 2 do
    local text = (inlines[i].text or ""):gsub("^–", "--")
    if not text:match("^%-+%w+,?$") then return inlines end
    inlines[i] = FORMAT == "typst" and pandoc.RawInline("typst", (text:gsub("%-", "\\-"))) or pandoc.Str((text:gsub("%-", "\u{2011}")))
  end
  return inlines
end

local function minus(element) -- typst makes it by itself; code has none
  element.text = element.text:gsub("^%-(%d)", "−%1"):gsub("([%[%(\u{a0}])%-(%d)", "%1−%2")
  return element
end

-- pandoc's typst writer rounds these spaces to whole em, and sets |R| apart
local function formula(element)
  if FORMAT ~= "typst" then return end
  element.text = element.text:gsub("\\\\", "\1"):gsub("\\!", ""):gsub("\\[:;]", "\\,"):gsub("\1", "\\\\"):gsub("|(%w+)|", "\\left|%1\\right|")
  if not element.text:match("^[%d.]+ \\cdot 10") then return element end -- a number, which stays in one line
  return {pandoc.RawInline("typst", "#box["), element, pandoc.RawInline("typst", "]")}
end

-- before the heading "Abstract" stand, a paragraph each, course and date; under it and under 摘要 the abstract. The authors are
-- the first column of the table whose first column is called "member"
local function front(document)
  local meta, head, abstract, body = document.meta, pandoc.Blocks({}), pandoc.Blocks({}), pandoc.Blocks({})
  local part, text, quoted = head, pandoc.utils.stringify, {}
  for _, block in ipairs(document.blocks) do
    local name = block.t == "Header" and text(block)
    if name and block.level == 1 then
      body:insert(block)
    elseif name == "Abstract" then
      part, meta["abstract-title"] = abstract, name
    elseif name == "摘要" and part == abstract then
      part:insert(pandoc.Para({pandoc.Strong(name)}))
    else
      part = name and body or part
      if name and block.level == 2 then part:insert(pandoc.RawBlock("typst", "#place.flush()")) end
      part:insert(block)
      local set = name and (name:match("^Appendix") and STAYS or name:match("References$") and SMALL)
      if set then body:insert(pandoc.RawBlock("typst", set)) end
    end
  end
  if #abstract == 0 then return document end
  meta.author, meta.subtitle, meta.date, meta.abstract = pandoc.List({}), head[1].content, head[2] and head[2].content, abstract
  meta.subject = text(head)
  body:walk({Table = function(block)
    if #block.head.rows == 0 or text(block.head.rows[1].cells[1].contents) ~= "member" then return end
    for _, row in ipairs(block.bodies[1].body) do
      meta.author:insert(pandoc.Inlines(text(row.cells[1].contents)))
      table.insert(quoted, string.format("%q", text(row.cells[1].contents)))
    end
  end})
  meta.names = pandoc.RawInline("typst", table.concat(quoted, ", "))
  return pandoc.Pandoc(body, meta)
end

local function settings(meta)
  base = pandoc.utils.stringify(meta.base or "")
end

return {
  {Meta = settings, RawInline = raw, RawBlock = raw, Inlines = command},
  {Image = size, Str = minus, Blocks = captions, Math = formula},
  {Link = link, Table = fit_table},
  {Pandoc = front},
}
