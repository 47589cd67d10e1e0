//! Tokens to the declarations and statements of a module. Nothing is resolved here: names stay
//! names until [`crate::function`] gives them a place.

use crate::lexer::{Token, tokens};
use crate::types::Type;

pub(crate) type Result<T> = std::result::Result<T, String>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A named piece of memory.
#[derive(Debug)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub ty: Type,
    pub align: usize,
    /// Elements; `None` for `name[]`, whose size the launch gives.
    pub count: Option<usize>,
    pub initial: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// A register, a special register, a label or a variable, and what is added to its address.
    Name(String, i64),
    Not(String),
    Integer(u64),
    Float32(u32),
    Float64(u64),
    /// `{a, b, ...}`
    Vector(Vec<Operand>),
    /// `[a]`
    Address(Box<Operand>),
    /// `p|q`
    Pair(Box<Operand>, Box<Operand>),
}

#[derive(Debug)]
pub(crate) struct Statement {
    pub line: u32,
    /// `@p` or `@!p`; true for the latter.
    pub guard: Option<(String, bool)>,
    pub opcode: String,
    pub operands: Vec<Operand>,
}

#[derive(Debug)]
pub(crate) enum Item {
    /// `.reg .f32 %f<10>` declares ten.
    Registers(Type, String, Option<usize>),
    Variable(Variable),
    Label(String),
    /// `.branchtargets` of `brx.idx`.
    Targets(String, Vec<String>),
    Open,
    Close,
    Statement(Statement),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub line: u32,
    pub params: Vec<Variable>,
    pub max_threads: Option<u32>,
    pub body: Vec<Item>,
}

#[derive(Debug, Default)]
pub(crate) struct Unit {
    pub version: (u32, u32),
    pub target: u32,
    pub variables: Vec<Variable>,
    pub entries: Vec<Entry>,
}

pub(crate) fn parse(text: &str) -> Result<Unit> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0 };
    parser.unit().map_err(|e| format!("PTX line {}: {e}", parser.line()))
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.next.saturating_sub(1).min(last)).map_or(1, |t| t.line)
    }

    fn peek(&self) -> &'a str {
        self.tokens.get(self.next).map_or("", |t| t.text)
    }

    fn take(&mut self) -> Result<&'a str> {
        let token = self.tokens.get(self.next).ok_or("the text ends in the middle")?;
        self.next += 1;
        Ok(token.text)
    }

    fn word(&mut self) -> Result<&'a str> {
        let is_word = self.tokens.get(self.next).is_some_and(Token::is_word);
        let text = self.take()?;
        if is_word { Ok(text) } else { Err(format!("a name was expected, not `{text}`")) }
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == text;
        self.next += found as usize;
        found
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        let found = self.take()?;
        if found == text { Ok(()) } else { Err(format!("`{text}` was expected, not `{found}`")) }
    }

    fn number(&mut self) -> Result<usize> {
        let word = self.word()?;
        Ok(integer(word).ok_or_else(|| format!("a number was expected, not `{word}`"))? as usize)
    }

    fn unit(&mut self) -> Result<Unit> {
        let mut unit = Unit::default();
        while self.next < self.tokens.len() {
            match self.peek() {
                ".version" => {
                    self.next += 1;
                    unit.version = version(self.word()?)?;
                }
                ".target" => {
                    self.next += 1;
                    unit.target = target(self.word()?)?;
                }
                ".address_size" => {
                    self.next += 1;
                    if self.number()? != 64 {
                        return Err("only 64-bit addresses are supported".into());
                    }
                }
                ".visible" | ".weak" | ".extern" | ".common" => self.next += 1,
                ".entry" => unit.entries.push(self.entry()?),
                ".global" | ".const" | ".shared" => unit.variables.extend(self.variables()?),
                ".func" => return Err("functions that are not inlined are not supported".into()),
                other => return Err(format!("`{other}` is not supported")),
            }
        }
        if unit.version == (0, 0) || unit.target == 0 {
            return Err("`.version` or `.target` is missing".into());
        }
        Ok(unit)
    }

    fn entry(&mut self) -> Result<Entry> {
        self.expect(".entry")?;
        let line = self.line();
        let name = self.word()?.to_string();
        let mut params = Vec::new();
        if self.accept("(") {
            while !self.accept(")") {
                params.push(self.variable(Space::Param)?);
                self.accept(",");
            }
        }
        let mut max_threads = None;
        loop {
            match self.take()? {
                "{" => break,
                ".maxntid" | ".reqntid" => max_threads = Some(self.extents()?),
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => _ = self.number()?,
                other => return Err(format!("`{other}` is not supported")),
            }
        }
        Ok(Entry { name, line, params, max_threads, body: self.body()? })
    }

    /// `256, 1, 1`: their product.
    fn extents(&mut self) -> Result<u32> {
        let mut product = self.number()?;
        while self.accept(",") {
            product *= self.number()?;
        }
        Ok(product as u32)
    }

    /// Up to the brace that closes the one already taken.
    fn body(&mut self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut depth = 1;
        loop {
            match self.peek() {
                "{" => {
                    self.next += 1;
                    depth += 1;
                    items.push(Item::Open);
                }
                "}" => {
                    self.next += 1;
                    depth -= 1;
                    if depth == 0 {
                        return Ok(items);
                    }
                    items.push(Item::Close);
                }
                ";" => self.next += 1,
                ".param" => return Err("calls are not supported".into()),
                ".reg" => self.registers(&mut items)?,
                ".shared" | ".local" => {
                    items.extend(self.variables()?.into_iter().map(Item::Variable))
                }
                ".pragma" => while self.take()? != ";" {},
                _ if self.tokens.get(self.next + 1).is_some_and(|t| t.text == ":") => {
                    items.push(self.label()?)
                }
                _ => items.push(Item::Statement(self.statement()?)),
            }
        }
    }

    fn label(&mut self) -> Result<Item> {
        let name = self.word()?.to_string();
        self.expect(":")?;
        if !self.accept(".branchtargets") {
            return Ok(Item::Label(name));
        }
        let mut targets = Vec::new();
        loop {
            targets.push(self.word()?.to_string());
            if !self.accept(",") {
                self.expect(";")?;
                return Ok(Item::Targets(name, targets));
            }
        }
    }

    fn registers(&mut self, items: &mut Vec<Item>) -> Result<()> {
        self.expect(".reg")?;
        let ty = self.ty()?;
        loop {
            let name = self.word()?.to_string();
            let mut count = None;
            if self.accept("<") {
                count = Some(self.number()?);
                self.expect(">")?;
            }
            items.push(Item::Registers(ty, name, count));
            if !self.accept(",") {
                return self.expect(";");
            }
        }
    }

    fn ty(&mut self) -> Result<Type> {
        let word = self.word()?;
        word.strip_prefix('.')
            .and_then(Type::named)
            .ok_or_else(|| format!("`{word}` is not a known type"))
    }

    /// `.shared .align 16 .b8 a[32], b[4];`
    fn variables(&mut self) -> Result<Vec<Variable>> {
        let space = match self.peek() {
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            ".const" => Space::Const,
            _ => Space::Global,
        };
        let mut variables = vec![self.variable(space)?];
        while self.accept(",") {
            let (ty, align) = (variables[0].ty, variables[0].align);
            variables.push(self.declarator(space, ty, align)?);
        }
        self.expect(";")?;
        Ok(variables)
    }

    fn variable(&mut self, space: Space) -> Result<Variable> {
        self.take()?;
        let mut align = None;
        loop {
            match self.peek() {
                ".align" => {
                    self.next += 1;
                    let bytes = self.number()?;
                    // Of a pointer parameter (`.ptr`) it is the pointee that is aligned.
                    align = align.or(Some(bytes));
                }
                ".ptr" => {
                    self.next += 1;
                    align = Some(8);
                }
                ".global" | ".const" | ".shared" | ".local" => self.next += 1,
                word if word.strip_prefix('.').and_then(Type::named).is_some() => {
                    let ty = self.ty()?;
                    while matches!(
                        self.peek(),
                        ".ptr" | ".global" | ".const" | ".shared" | ".local"
                    ) {
                        self.next += 1;
                    }
                    if self.accept(".align") {
                        self.number()?;
                    }
                    return self.declarator(space, ty, align.unwrap_or(ty.size()));
                }
                other => return Err(format!("`{other}` is not supported in a declaration")),
            }
        }
    }

    fn declarator(&mut self, space: Space, ty: Type, align: usize) -> Result<Variable> {
        let name = self.word()?.to_string();
        let mut count = Some(1);
        while self.accept("[") {
            if self.accept("]") {
                count = None;
                continue;
            }
            let extent = self.number()?;
            count = count.map(|c| c * extent);
            self.expect("]")?;
        }
        let mut initial = Vec::new();
        if self.accept("=") {
            self.initial(&mut initial)?;
        }
        Ok(Variable { name, space, ty, align, count, initial })
    }

    fn initial(&mut self, values: &mut Vec<u64>) -> Result<()> {
        if !self.accept("{") {
            values.push(match self.operand()? {
                Operand::Integer(bits) | Operand::Float64(bits) => bits,
                Operand::Float32(bits) => bits as u64,
                other => return Err(format!("{other:?} is not supported as an initial value")),
            });
            return Ok(());
        }
        while !self.accept("}") {
            self.initial(values)?;
            self.accept(",");
        }
        Ok(())
    }

    fn statement(&mut self) -> Result<Statement> {
        let mut guard = None;
        if self.accept("@") {
            let negated = self.accept("!");
            guard = Some((self.word()?.to_string(), negated));
        }
        let opcode = self.word()?.to_string();
        let line = self.line();
        let mut operands = Vec::new();
        while !self.accept(";") {
            operands.push(self.operand()?);
            if self.peek() != ";" {
                self.expect(",")?;
            }
        }
        Ok(Statement { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand> {
        if self.accept("{") {
            let mut parts = Vec::new();
            while !self.accept("}") {
                parts.push(self.operand()?);
                self.accept(",");
            }
            return Ok(Operand::Vector(parts));
        }
        if self.accept("[") {
            let inner = self.operand()?;
            self.expect("]")?;
            return Ok(Operand::Address(Box::new(inner)));
        }
        if self.accept("!") {
            return Ok(Operand::Not(self.word()?.to_string()));
        }
        let operand = self.simple_operand()?;
        if self.accept("|") {
            return Ok(Operand::Pair(Box::new(operand), Box::new(self.simple_operand()?)));
        }
        Ok(operand)
    }

    fn simple_operand(&mut self) -> Result<Operand> {
        let negative = self.accept("-");
        let word = self.word()?;
        if let Some(value) = literal(word) {
            return Ok(if negative { negate(value) } else { value });
        }
        if negative {
            return Err(format!("`-{word}` is not supported"));
        }
        let mut offset = 0;
        while matches!(self.peek(), "+" | "-") {
            let mut sign = if self.take()? == "-" { -1 } else { 1 };
            if self.accept("-") {
                sign = -sign;
            }
            offset += sign * self.number()? as i64;
        }
        Ok(Operand::Name(word.to_string(), offset))
    }
}

fn version(word: &str) -> Result<(u32, u32)> {
    word.split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| format!("`.version {word}` is not a version"))
}

fn target(word: &str) -> Result<u32> {
    word.strip_prefix("sm_")
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| format!("`.target {word}` is not supported"))
}

fn literal(word: &str) -> Option<Operand> {
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let hexadecimal = |prefix: [&str; 2]| {
        let digits = prefix.iter().find_map(|p| word.strip_prefix(p))?;
        u64::from_str_radix(digits, 16).ok()
    };
    if let Some(bits) = hexadecimal(["0f", "0F"]) {
        return Some(Operand::Float32(bits as u32));
    }
    if let Some(bits) = hexadecimal(["0d", "0D"]) {
        return Some(Operand::Float64(bits));
    }
    if let Some(value) = integer(word) {
        return Some(Operand::Integer(value));
    }
    word.parse::<f64>().ok().map(|x| Operand::Float64(x.to_bits()))
}

fn integer(word: &str) -> Option<u64> {
    let digits = word.trim_end_matches('U');
    let lower = digits.to_ascii_lowercase();
    if let Some(hexadecimal) = lower.strip_prefix("0x") {
        u64::from_str_radix(hexadecimal, 16).ok()
    } else if let Some(binary) = lower.strip_prefix("0b") {
        u64::from_str_radix(binary, 2).ok()
    } else if lower.len() > 1 && lower.starts_with('0') {
        u64::from_str_radix(&lower[1..], 8).ok()
    } else {
        digits.parse().ok()
    }
}

fn negate(value: Operand) -> Operand {
    match value {
        Operand::Integer(bits) => Operand::Integer(bits.wrapping_neg()),
        Operand::Float32(bits) => Operand::Float32(bits ^ 1 << 31),
        Operand::Float64(bits) => Operand::Float64(bits ^ 1 << 63),
        other => other,
    }
}
