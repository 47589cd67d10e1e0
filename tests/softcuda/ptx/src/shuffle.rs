//! What the lanes of a warp do together: shuffles, votes, matches, reductions.

use crate::fault::{Kind, Trouble};
use crate::instruction::{Exchange, Shuffle, Vote};
use crate::registers::{LANES, Mask, Register, Registers, for_lanes};

/// `lanes` have all arrived, and are all there is of the member mask.
pub(crate) fn exchange(
    exchange: &Exchange,
    registers: &mut Registers,
    lanes: Mask,
) -> Result<(), Trouble> {
    match exchange {
        Exchange::Wait => {}
        Exchange::Shuffle { mode, into, valid, value, lane, clamp } => {
            return shuffle(registers, lanes, *mode, (*into, *valid), [*value, *lane, *clamp]);
        }
        Exchange::Vote { mode, into, predicate, negated } => {
            let flip = if *negated { !0 } else { 0 };
            let holds = (registers.predicates[predicate.index as usize] ^ flip) & lanes;
            let result = match mode {
                Vote::All => (holds == lanes) as u64,
                Vote::Any => (holds != 0) as u64,
                Vote::Uniform => (holds == lanes || holds == 0) as u64,
                Vote::Ballot => holds as u64,
            };
            for_lanes(lanes, |l| registers.set(*into, l, result));
        }
        Exchange::Match { all, every, into, value } => {
            let values: [u64; LANES] = std::array::from_fn(|l| registers.get(*value, l));
            for_lanes(lanes, |l| {
                let mut equal = 0;
                for_lanes(lanes, |other| equal |= ((values[other] == values[l]) as u32) << other);
                let agreed = equal == lanes;
                registers.set(*into, l, if *every && !agreed { 0 } else { equal as u64 });
                if let Some(all) = all {
                    registers.set(*all, l, agreed as u64);
                }
            });
        }
        Exchange::Reduce { ty, update, into, value } => {
            let mut result = None;
            for_lanes(lanes, |l| {
                let value = registers.get(*value, l);
                result = Some(result.map_or(value, |sum| update.apply(*ty, sum, value, 0)));
            });
            for_lanes(lanes, |l| registers.set(*into, l, result.unwrap_or(0)));
        }
    }
    Ok(())
}

/// The clamp holds the last lane of a segment in bits 0..5, and the segment's mask in bits 8..13.
fn shuffle(
    registers: &mut Registers,
    lanes: Mask,
    mode: Shuffle,
    (into, valid): (Register, Option<Register>),
    [value, lane, clamp]: [Register; 3],
) -> Result<(), Trouble> {
    let row = |register: Register| registers.words[register.index as usize];
    let (values, distances, clamps) = (row(value), row(lane), row(clamp));
    let mut rest = lanes;
    while rest != 0 {
        let lane = rest.trailing_zeros();
        rest &= rest - 1;
        let l = lane as usize;
        let (segment, bound, distance) = (clamps[l] >> 8 & 31, clamps[l] & 31, distances[l] & 31);
        let first = lane & segment;
        let last = first | bound & !segment;
        let (source, is_valid) = match mode {
            // Here the clamp is the first lane.
            Shuffle::Up => {
                (lane.wrapping_sub(distance), lane as i32 - distance as i32 >= last as i32)
            }
            Shuffle::Down => (lane + distance, lane + distance <= last),
            Shuffle::Butterfly => (lane ^ distance, lane ^ distance <= last),
            Shuffle::Index => {
                let source = first | distance & !segment;
                (source, source <= last)
            }
        };
        let source = if is_valid { source } else { lane };
        if lanes >> source & 1 == 0 {
            let what =
                format!("lane {lane} reads lane {source}, which takes no part in the shuffle");
            return Err(Trouble::new(Kind::InactiveLane, what));
        }
        registers.words[into.index as usize][l] = values[source as usize];
        if let Some(valid) = valid {
            registers.set(valid, l, is_valid as u64);
        }
    }
    Ok(())
}
