//! Addresses of the engine's tensors that were found to be the device's. The driver is not asked again about those seen
//! lately; however many there are, the memory is this much.

const PLACES: usize = 256;

/// Each address has one place, which the next of that place takes from it.
pub struct Admitted([usize; PLACES]);

impl Admitted {
    pub fn none() -> Self {
        Self([0; PLACES])
    }

    pub fn contains(&self, address: usize) -> bool {
        self.0[place(address)] == address
    }

    pub fn insert(&mut self, address: usize) {
        self.0[place(address)] = address;
    }
}

/// Addresses lie at equal distances, and high: one product of them would not scatter them.
fn place(address: usize) -> usize {
    let scatter = |x: u64| x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let once = scatter(address as u64);
    (scatter(once ^ once >> 32) >> 56) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_64_buffers_at_equal_distances_few_take_anothers_place() {
        for distance in [1 << 9, 1 << 16, 4608 * 3072 * 2, 1 << 26] {
            let mut admitted = Admitted::none();
            let addresses = || (1..=64).map(|k| 0x7f00_0000_0000 + k * distance);
            addresses().for_each(|address| admitted.insert(address));
            let known = addresses().filter(|address| admitted.contains(*address)).count();
            assert!(known >= 48, "{known} of 64 at distance {distance}");
            assert!(!admitted.contains(0x7f00_0000_0000));
        }
    }
}
