//! Reuse of the newest value: FBCache and DBCache on residuals, PAB on outputs.
use super::*;

#[derive(Clone, Copy, Debug)]
pub struct Hold;

impl Estimator for Hold {
    fn capacity(&self) -> usize {
        1
    }

    fn weights(&self, _: &Kept, _: Wanted) -> Weights {
        Weights::unit(0)
    }
}
