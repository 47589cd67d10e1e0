//! PTX on the CPU. [`Module::parse`] turns the text that the driver would be given into functions,
//! and [`run`] executes one of them over a grid: a warp at a time, a register being a row of 32
//! lanes, so that the compiler vectorises the work.
//!
//! It is a stand-in to *test* with, so it is strict where a GPU is not. An opcode, a modifier or a
//! type it does not know is refused when the module is loaded; so is all that a GPU computes only
//! approximately (`.approx`, `.ftz`, `div.full`), because no CPU could check its bits. Every access
//! is checked, shared memory starts out as NaN, and races, deadlocks and misuse of the warp
//! instructions are faults that name kernel, block, warp and line.
//!
//! What it cannot show: time, the weakness of the memory model (a missing `__threadfence` goes
//! unnoticed), races on global memory and within a warp, and the freedom of the assembler to
//! contract a `mul.f32` and an `add.f32` that do not say `.rn`.
//!
//! | file | what |
//! |---|---|
//! | `lexer`, `parse` | text to declarations and statements |
//! | `function` | names to registers, parameters and memory |
//! | `decode/` | one statement to one [`instruction`] |
//! | `registers` | the rows, and how an operation is applied to them |
//! | `grid`, `warp` | blocks, barriers; lanes that go different ways |
//! | `access`, `shared`, `shuffle` | instructions that touch memory or other lanes |

mod access;
mod decode;
mod fault;
mod function;
mod fused;
mod grid;
mod instruction;
mod lexer;
mod parse;
mod registers;
mod shared;
mod shuffle;
mod storage;
mod types;
mod warp;

use std::sync::Arc;

pub use fault::{Fault, Kind};
pub use function::Function;

use storage::Storage;

/// The device memory a kernel may touch; device addresses are addresses of this process.
pub trait Memory {
    /// Whether the kernel may read or write these bytes, all of them in one live allocation; an error
    /// says why not ("freed", "4 bytes past the end of ...").
    fn check(&self, address: u64, bytes: usize, write: bool) -> Result<(), String>;
}

pub struct Launch<'a> {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes.
    pub dynamic_shared: usize,
    /// The parameters, laid out as [`Function::params`] says.
    pub params: &'a [u8],
    /// Of the order in which blocks and warps take turns.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub warp_instructions: u64,
    pub lane_instructions: u64,
}

/// A block that executes more than this waits for something that cannot happen: half a minute.
const MAX_WARP_INSTRUCTIONS: u64 = 1 << 28;

pub struct Module {
    version: (u32, u32),
    target: u32,
    functions: Vec<Function>,
    storage: Arc<Storage>,
}

impl Module {
    /// An error names the line and the opcode.
    pub fn parse(text: &str) -> Result<Module, String> {
        let unit = parse::parse(text)?;
        let storage = Arc::new(Storage::new(&unit.variables)?);
        let functions = unit
            .entries
            .iter()
            .map(|entry| {
                Function::build(entry, &unit.variables, &storage)
                    .map_err(|e| format!("{}: {e}", entry.name))
            })
            .collect::<Result<Vec<Function>, String>>()?;
        Ok(Module { version: unit.version, target: unit.target, functions, storage })
    }

    /// `.version`, as (major, minor).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// `.target`: 75 for sm_75.
    pub fn target(&self) -> u32 {
        self.target
    }

    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name() == name)
    }

    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter()
    }

    /// Address and size of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, usize)> {
        self.storage.find(name)
    }
}

/// Runs the whole grid, one block after another.
pub fn run(function: &Function, launch: &Launch, memory: &dyn Memory) -> Result<Counts, Fault> {
    run_at_most(function, launch, memory, MAX_WARP_INSTRUCTIONS)
}

/// The same with a limit of one's own on the warp instructions of a block.
pub fn run_at_most(
    function: &Function,
    launch: &Launch,
    memory: &dyn Memory,
    limit: u64,
) -> Result<Counts, Fault> {
    grid::run(function, launch, memory, limit)
}
