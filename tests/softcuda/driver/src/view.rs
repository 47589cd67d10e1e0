//! The memory as one kernel sees it, and what it touches of it.

use crate::{
    clock::Stamp,
    memory::{Heap, Place},
};
use std::{cell::RefCell, ops::Range};

pub struct View<'a> {
    heap: &'a Heap,
    place: Place,
    stamp: &'a Stamp,
    /// The last one used comes first.
    touched: RefCell<Vec<Touched>>,
}

struct Touched {
    start: u64,
    end: u64,
    read: Range<u64>,
    write: Range<u64>,
}

impl View<'_> {
    pub fn new<'a>(heap: &'a Heap, place: Place, stamp: &'a Stamp) -> View<'a> {
        View { heap, place, stamp, touched: RefCell::default() }
    }

    /// Each allocation the kernel touched, with the range it read and the range it wrote.
    pub fn touched(self) -> Vec<(u64, Range<u64>, Range<u64>)> {
        self.touched
            .into_inner()
            .into_iter()
            .map(|touched| (touched.start, touched.read, touched.write))
            .collect()
    }
}

impl softcuda_ptx::Memory for View<'_> {
    /// An allocation is looked up and its order checked at the first access; after that the bounds decide.
    fn check(&self, address: u64, bytes: usize, write: bool) -> Result<(), String> {
        let end = address.checked_add(bytes as u64).ok_or("the address wraps around")?;
        let mut touched = self.touched.borrow_mut();
        match touched.iter().position(|known| known.start <= address && end <= known.end) {
            Some(0) => {}
            Some(known) => touched.swap(0, known),
            None => {
                let Range { start, end } =
                    self.heap.check(&self.place, self.stamp, address, bytes)?;
                touched.insert(0, Touched { start, end, read: 0..0, write: 0..0 });
            }
        }
        let range = if write { &mut touched[0].write } else { &mut touched[0].read };
        *range = match range.is_empty() {
            true => address..end,
            false => range.start.min(address)..range.end.max(end),
        };
        Ok(())
    }
}
