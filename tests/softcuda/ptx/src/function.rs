//! Names to places: registers to rows, parameters to offsets, variables to addresses.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode::decode;
use crate::instruction::{Action, Instruction};
use crate::parse::{Entry, Item, Operand, Result, Space, Statement, Variable};
use crate::registers::{Register, Width};
use crate::storage::Storage;
use crate::types::Type;

/// Alignment of the dynamic part of shared memory.
const DYNAMIC_ALIGN: usize = 16;

pub(crate) struct Code {
    pub instructions: Vec<Instruction>,
    pub words: usize,
    pub doubles: usize,
    pub predicates: usize,
    pub word_constants: Vec<(u32, u32)>,
    pub double_constants: Vec<(u32, u64)>,
    pub predicate_constants: Vec<(u32, bool)>,
    pub specials: Vec<(u32, Special)>,
    /// Bytes a lane.
    pub local: usize,
    /// The module's own `.global` and `.const` memory.
    pub storage: Arc<Storage>,
}

/// A `.entry`.
pub struct Function {
    pub(crate) name: String,
    pub(crate) line: u32,
    pub(crate) params: Vec<(usize, usize)>,
    pub(crate) max_threads: Option<u32>,
    pub(crate) static_shared: usize,
    pub(crate) code: Code,
}

impl Function {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Offset and size of each parameter, in bytes.
    pub fn params(&self) -> &[(usize, usize)] {
        &self.params
    }

    /// Of `.maxntid`, else what any GPU takes.
    pub fn max_threads(&self) -> u32 {
        self.max_threads.unwrap_or(1024)
    }

    /// Bytes.
    pub fn static_shared(&self) -> usize {
        self.static_shared
    }

    /// A guess: PTX has virtual registers, the real number is the assembler's.
    pub fn registers(&self) -> u32 {
        ((self.code.words + 2 * self.code.doubles) as u32).min(255)
    }

    pub(crate) fn build(
        entry: &Entry,
        module: &[Variable],
        storage: &Arc<Storage>,
    ) -> Result<Function> {
        let mut names = Names::default();
        let params = names.place_params(&entry.params);
        let static_shared = names.place_variables(entry, module, storage)?;
        names.place_labels(&entry.body)?;
        let instructions = names.instructions(&entry.body)?;
        Ok(Function {
            name: entry.name.clone(),
            line: entry.line,
            params,
            max_threads: entry.max_threads,
            static_shared,
            code: Code {
                instructions,
                words: names.words as usize,
                doubles: names.doubles as usize,
                predicates: names.predicates as usize,
                word_constants: names
                    .word_constants
                    .into_iter()
                    .map(|(value, row)| (row, value))
                    .collect(),
                double_constants: names
                    .double_constants
                    .into_iter()
                    .map(|(value, row)| (row, value))
                    .collect(),
                predicate_constants: names
                    .predicate_constants
                    .into_iter()
                    .map(|(value, row)| (row, value))
                    .collect(),
                specials: names.specials.into_iter().map(|(special, row)| (row, special)).collect(),
                local: names.local,
                storage: storage.clone(),
            },
        })
    }
}

/// Registers that hold where in the grid a lane is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Special {
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    GridSize(usize),
    Lane,
    Warp,
    Warps,
    MaskEqual,
    MaskLess,
    MaskLessEqual,
    MaskGreater,
    MaskGreaterEqual,
    DynamicShared,
    TotalShared,
}

impl Special {
    fn named(name: &str) -> Option<Special> {
        let axis = |name: &str| ["x", "y", "z"].iter().position(|a| *a == name);
        if let Some((register, part)) = name.split_once('.') {
            let axis = axis(part)?;
            return Some(match register {
                "%tid" => Special::Thread(axis),
                "%ntid" => Special::BlockSize(axis),
                "%ctaid" => Special::Block(axis),
                "%nctaid" => Special::GridSize(axis),
                _ => return None,
            });
        }
        Some(match name {
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::Warps,
            "%lanemask_eq" => Special::MaskEqual,
            "%lanemask_lt" => Special::MaskLess,
            "%lanemask_le" => Special::MaskLessEqual,
            "%lanemask_gt" => Special::MaskGreater,
            "%lanemask_ge" => Special::MaskGreaterEqual,
            "%dynamic_smem_size" => Special::DynamicShared,
            "%total_smem_size" => Special::TotalShared,
            _ => return None,
        })
    }
}

/// All that a name in a function can stand for.
#[derive(Default)]
pub(crate) struct Names {
    /// Innermost scope last.
    scopes: Vec<HashMap<String, Register>>,
    variables: HashMap<String, (Space, u64)>,
    labels: HashMap<String, usize>,
    targets: HashMap<String, Vec<String>>,
    words: u32,
    doubles: u32,
    predicates: u32,
    word_constants: HashMap<u32, u32>,
    double_constants: HashMap<u64, u32>,
    predicate_constants: HashMap<bool, u32>,
    specials: HashMap<Special, u32>,
    local: usize,
}

impl Names {
    fn place_params(&mut self, params: &[Variable]) -> Vec<(usize, usize)> {
        let mut end = 0usize;
        let mut places = Vec::new();
        for param in params {
            let offset = end.next_multiple_of(param.align);
            let size = param.ty.size() * param.count.unwrap_or(1);
            self.variables.insert(param.name.clone(), (Space::Param, offset as u64));
            places.push((offset, size));
            end = offset + size;
        }
        places
    }

    /// Returns the bytes of static shared memory.
    fn place_variables(
        &mut self,
        entry: &Entry,
        module: &[Variable],
        storage: &Storage,
    ) -> Result<usize> {
        let own = entry.body.iter().filter_map(|item| match item {
            Item::Variable(variable) => Some(variable),
            _ => None,
        });
        let used =
            module.iter().filter(|v| v.space == Space::Shared && mentions(&entry.body, &v.name));
        let mut shared = 0usize;
        for variable in own.chain(used.clone()) {
            let Some(count) = variable.count else { continue };
            let end = if variable.space == Space::Shared { &mut shared } else { &mut self.local };
            let offset = end.next_multiple_of(variable.align);
            *end = offset + count * variable.ty.size();
            self.variables.insert(variable.name.clone(), (variable.space, offset as u64));
        }
        let dynamic = shared.next_multiple_of(DYNAMIC_ALIGN);
        let mut has_dynamic = false;
        for variable in used.filter(|v| v.count.is_none()) {
            self.variables.insert(variable.name.clone(), (Space::Shared, dynamic as u64));
            has_dynamic = true;
        }
        for (name, space, address) in storage.variables() {
            self.variables.insert(name.to_string(), (space, address));
        }
        Ok(if has_dynamic { dynamic } else { shared })
    }

    fn place_labels(&mut self, body: &[Item]) -> Result<()> {
        let mut position = 0;
        for item in body {
            match item {
                Item::Statement(_) => position += 1,
                Item::Label(name) => self.place_label(name, position)?,
                Item::Targets(name, targets) => {
                    _ = self.targets.insert(name.clone(), targets.clone())
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn place_label(&mut self, name: &str, position: usize) -> Result<()> {
        match self.labels.insert(name.to_string(), position) {
            Some(_) => Err(format!("label `{name}` is there twice")),
            None => Ok(()),
        }
    }

    fn instructions(&mut self, body: &[Item]) -> Result<Vec<Instruction>> {
        let mut instructions = Vec::new();
        self.scopes.push(HashMap::new());
        for item in body {
            match item {
                Item::Open => self.scopes.push(HashMap::new()),
                Item::Close => _ = self.scopes.pop(),
                Item::Registers(ty, name, count) => self.declare(*ty, name, *count),
                Item::Statement(statement) => {
                    instructions.push(self.instruction(statement).map_err(|e| {
                        format!("PTX line {}: `{}`: {e}", statement.line, statement.opcode)
                    })?)
                }
                Item::Variable(_) | Item::Label(_) | Item::Targets(..) => {}
            }
        }
        let line = instructions.last().map_or(0, |last: &Instruction| last.line);
        instructions.push(Instruction { line, guard: None, action: Action::Exit });
        Ok(instructions)
    }

    fn instruction(&mut self, statement: &Statement) -> Result<Instruction> {
        let guard = match &statement.guard {
            Some((name, negated)) => Some((self.register(name, Width::Predicate)?.index, *negated)),
            None => None,
        };
        Ok(Instruction { line: statement.line, guard, action: decode(statement, self)? })
    }

    fn declare(&mut self, ty: Type, name: &str, count: Option<usize>) {
        let names = match count {
            Some(count) => (0..count).map(|i| format!("{name}{i}")).collect(),
            None => vec![name.to_string()],
        };
        for name in names {
            let register = self.fresh(width_of(ty));
            self.scopes.last_mut().expect("a scope is open").insert(name, register);
        }
    }

    pub fn fresh(&mut self, width: Width) -> Register {
        let file = match width {
            Width::Predicate => &mut self.predicates,
            Width::Half | Width::Word => &mut self.words,
            Width::Double => &mut self.doubles,
        };
        *file += 1;
        Register { width, index: *file - 1 }
    }

    pub fn declared(&self, name: &str) -> Option<Register> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    pub fn register(&self, name: &str, width: Width) -> Result<Register> {
        let register = self.declared(name).ok_or_else(|| format!("unknown register `{name}`"))?;
        if register.width == width {
            Ok(register)
        } else {
            Err(format!("`{name}` is not {width:?}"))
        }
    }

    pub fn variable(&self, name: &str) -> Option<(Space, u64)> {
        self.variables.get(name).copied()
    }

    pub fn label(&self, name: &str) -> Result<usize> {
        self.labels.get(name).copied().ok_or_else(|| format!("unknown label `{name}`"))
    }

    pub fn targets(&self, name: &str) -> Result<Vec<usize>> {
        let targets = self.targets.get(name).ok_or_else(|| format!("unknown targets `{name}`"))?;
        targets.iter().map(|label| self.label(label)).collect()
    }

    /// A row that holds the value in every lane.
    pub fn constant(&mut self, width: Width, value: u64) -> Register {
        let index = match width {
            Width::Predicate => self.predicate_constants.get(&(value != 0)).copied(),
            Width::Half => self.word_constants.get(&(value as u16 as u32)).copied(),
            Width::Word => self.word_constants.get(&(value as u32)).copied(),
            Width::Double => self.double_constants.get(&value).copied(),
        };
        if let Some(index) = index {
            return Register { width, index };
        }
        let register = self.fresh(width);
        match width {
            Width::Predicate => _ = self.predicate_constants.insert(value != 0, register.index),
            Width::Half => _ = self.word_constants.insert(value as u16 as u32, register.index),
            Width::Word => _ = self.word_constants.insert(value as u32, register.index),
            Width::Double => _ = self.double_constants.insert(value, register.index),
        }
        register
    }

    pub fn special(&mut self, name: &str) -> Option<Register> {
        if name == "WARP_SZ" {
            return Some(self.constant(Width::Word, 32));
        }
        let special = Special::named(name)?;
        if let Some(index) = self.specials.get(&special) {
            return Some(Register { width: Width::Word, index: *index });
        }
        let register = self.fresh(Width::Word);
        self.specials.insert(special, register.index);
        Some(register)
    }
}

pub(crate) fn width_of(ty: Type) -> Width {
    match ty {
        Type::Pred => Width::Predicate,
        _ => match ty.size() {
            1 | 2 => Width::Half,
            4 => Width::Word,
            _ => Width::Double,
        },
    }
}

fn mentions(body: &[Item], name: &str) -> bool {
    fn in_operand(operand: &Operand, name: &str) -> bool {
        match operand {
            Operand::Name(n, _) => n == name,
            Operand::Address(inner) => in_operand(inner, name),
            Operand::Vector(parts) => parts.iter().any(|p| in_operand(p, name)),
            _ => false,
        }
    }
    body.iter().any(|item| match item {
        Item::Statement(statement) => statement.operands.iter().any(|o| in_operand(o, name)),
        _ => false,
    })
}
