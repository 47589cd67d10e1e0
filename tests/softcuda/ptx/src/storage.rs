//! The `.global` and `.const` variables of a module: memory of this process that kernels reach by
//! its address, as they reach the rest.

use std::cell::UnsafeCell;

use crate::parse::{Result, Space, Variable};

/// Kernels read and write 16 bytes at once.
const ALIGN: usize = 16;

#[derive(Default)]
pub(crate) struct Storage {
    memory: UnsafeCell<Vec<u128>>,
    variables: Vec<Placed>,
}

struct Placed {
    name: String,
    space: Space,
    address: u64,
    bytes: usize,
}

// SAFETY: the memory is only ever touched through addresses, by kernels, and its vector never grows
// after it was made; that two kernels do not race on it is up to whoever launches them, as on a GPU.
unsafe impl Sync for Storage {}
// SAFETY: as above.
unsafe impl Send for Storage {}

impl Storage {
    pub fn new(variables: &[Variable]) -> Result<Storage> {
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        for variable in variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const))
        {
            let count = variable.count.unwrap_or(variable.initial.len());
            if variable.align > ALIGN || variable.initial.len() > count {
                return Err(format!(
                    "`{}`: alignment or initial values are not supported",
                    variable.name
                ));
            }
            let size = variable.ty.size();
            let start = bytes.len().next_multiple_of(variable.align);
            bytes.resize(start + count * size, 0u8);
            for (value, into) in variable.initial.iter().zip(bytes[start..].chunks_exact_mut(size))
            {
                into.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            places.push((start, variable, count * size));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        let words: Vec<u128> = bytes
            .chunks_exact(ALIGN)
            .map(|c| u128::from_le_bytes(c.try_into().expect("a whole word")))
            .collect();
        let base = words.as_ptr() as u64;
        let variables = places
            .into_iter()
            .map(|(start, variable, bytes)| Placed {
                name: variable.name.clone(),
                space: variable.space,
                address: base + start as u64,
                bytes,
            })
            .collect();
        Ok(Storage { memory: UnsafeCell::new(words), variables })
    }

    pub fn variables(&self) -> impl Iterator<Item = (&str, Space, u64)> {
        self.variables.iter().map(|v| (v.name.as_str(), v.space, v.address))
    }

    /// Address and size of a variable.
    pub fn find(&self, name: &str) -> Option<(u64, usize)> {
        self.variables.iter().find(|v| v.name == name).map(|v| (v.address, v.bytes))
    }

    /// `None`: not in this storage at all.
    pub fn check(
        &self,
        address: u64,
        bytes: usize,
        write: bool,
    ) -> Option<std::result::Result<(), String>> {
        // SAFETY: only the length and the address of the vector are read, and they never change.
        let (start, length) =
            unsafe { ((*self.memory.get()).as_ptr() as u64, (*self.memory.get()).len() * ALIGN) };
        if address < start || address >= start + length as u64 {
            return None;
        }
        let inside = |v: &&Placed| {
            address >= v.address && address + bytes as u64 <= v.address + v.bytes as u64
        };
        Some(match self.variables.iter().find(inside) {
            None => Err("outside every variable of the module".into()),
            Some(v) if write && v.space == Space::Const => {
                Err(format!("a write to the constant `{}`", v.name))
            }
            Some(_) => Ok(()),
        })
    }
}
