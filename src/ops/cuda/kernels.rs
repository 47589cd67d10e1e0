//! The kernels of `kernels/`, and what each is given. A family is a module: loaded by itself, when
//! one of its kernels is first wanted. The structs are those of the `.cu` files.
use super::layout::{Rows, Strided};
use crate::ops::MAX_TERMS;
use std::ffi::CStr;

/// Threads of a block.
pub const BLOCK: u32 = 256;
pub const WARP: u32 = 32;

/// Vectors of each tensor that a thread takes at a time where all tensors have one dtype.
pub const VECTORS: u64 = 2;

/// Sums that one launch forms.
pub const MAX_SUMS: usize = 4;

/// Tensors that one launch measures.
pub const MAX_COMPARED: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Combine,
    Measure,
    Ladder,
    LowPass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// For so many terms, of one dtype and rounded once; up to 4.
    CombineRows(usize),
    /// For any number of terms, of any dtypes and in either rounding.
    CombineRowsAny,
    CombineStrided,
    MeasureRows,
    MeasureStrided,
    Vote,
    LadderRows,
    LadderStrided,
    LowPass,
}

/// PTX of a family for one architecture, which ends with a NUL.
macro_rules! ptx {
    ($family:literal, $architecture:literal) => {
        concat!(
            include_str!(concat!("../../../kernels/ptx/", $family, ".", $architecture, ".ptx")),
            "\0"
        )
    };
}

impl Family {
    pub const ALL: [Self; 4] = [Self::Combine, Self::Measure, Self::Ladder, Self::LowPass];

    /// For compute capability 8.0 and newer, or 7.5 and newer.
    pub fn ptx(self, sm80: bool) -> &'static str {
        match (self, sm80) {
            (Self::Combine, false) => ptx!("combine", "sm75"),
            (Self::Combine, true) => ptx!("combine", "sm80"),
            (Self::Measure, false) => ptx!("measure", "sm75"),
            (Self::Measure, true) => ptx!("measure", "sm80"),
            (Self::Ladder, false) => ptx!("ladder", "sm75"),
            (Self::Ladder, true) => ptx!("ladder", "sm80"),
            (Self::LowPass, false) => ptx!("low_pass", "sm75"),
            (Self::LowPass, true) => ptx!("low_pass", "sm80"),
        }
    }

    /// In the order of [`Kernel::index`].
    pub fn names(self) -> &'static [&'static CStr] {
        match self {
            Self::Combine => &[
                c"combine_rows_0",
                c"combine_rows_1",
                c"combine_rows_2",
                c"combine_rows_3",
                c"combine_rows_4",
                c"combine_rows_n",
                c"combine_strided",
            ],
            Self::Measure => &[c"measure_rows", c"measure_strided", c"vote"],
            Self::Ladder => &[c"ladder_rows", c"ladder_strided"],
            Self::LowPass => &[c"low_pass"],
        }
    }
}

impl Kernel {
    pub fn family(self) -> Family {
        match self {
            Self::CombineRows(_) | Self::CombineRowsAny | Self::CombineStrided => Family::Combine,
            Self::MeasureRows | Self::MeasureStrided | Self::Vote => Family::Measure,
            Self::LadderRows | Self::LadderStrided => Family::Ladder,
            Self::LowPass => Family::LowPass,
        }
    }

    pub fn index(self) -> usize {
        match self {
            Self::CombineRows(terms) => terms,
            Self::CombineRowsAny => 5,
            Self::CombineStrided => 6,
            Self::MeasureRows | Self::LadderRows | Self::LowPass => 0,
            Self::MeasureStrided | Self::LadderStrided => 1,
            Self::Vote => 2,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SumOfRows {
    pub out: Rows,
    pub x: Rows,
    pub y: [Rows; MAX_TERMS],
    pub c: [f32; MAX_TERMS],
    pub rows: u64,
    pub cols: u64,
    pub n: u32,
    pub has_x: u32,
    pub each_term: u32,
    /// Those of the grid that work on it.
    pub first_block: u32,
    pub blocks: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Default)]
pub struct CombineRows {
    pub sum: [SumOfRows; MAX_SUMS],
    pub n: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Default)]
pub struct CombineStrided {
    pub out: Strided,
    pub x: Strided,
    pub y: [Strided; MAX_TERMS],
    pub c: [f32; MAX_TERMS],
    pub elements: u64,
    pub n: u32,
    pub has_x: u32,
    pub each_term: u32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ComparedRows {
    pub x: Rows,
    pub base: Rows,
    pub earlier: Rows,
    pub keep: Rows,
    pub rows: u64,
    pub cols: u64,
    pub has_base: u32,
    pub has_keep: u32,
    /// Those of the grid that work on it.
    pub first_block: u32,
    pub blocks: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct ComparedStrided {
    pub x: Strided,
    pub base: Strided,
    pub earlier: Strided,
    pub keep: Strided,
    pub elements: u64,
    pub has_base: u32,
    pub has_keep: u32,
}

/// `C` is [`ComparedRows`] or [`ComparedStrided`].
#[repr(C)]
#[derive(Default)]
pub struct Measure<C> {
    pub c: [C; MAX_COMPARED],
    pub partials: u64,
    pub counter: u64,
    pub result: u64,
    pub n: u32,
    pub rounded: u32,
}

#[repr(C)]
#[derive(Default)]
pub struct LadderRows {
    pub y: Rows,
    pub rung: [Rows; 5],
    pub rows: u64,
    pub cols: u64,
    pub n_rungs: u32,
    pub held: u32,
    pub gap: f32,
    pub unused: u32,
}

#[repr(C)]
#[derive(Default)]
pub struct LadderStrided {
    pub y: Strided,
    pub rung: [Strided; 5],
    pub elements: u64,
    pub n_rungs: u32,
    pub held: u32,
    pub gap: f32,
    pub unused: u32,
}

/// As `kernels/` asserts them.
const _: () = {
    assert!(size_of::<Rows>() == 24 && size_of::<Strided>() == 112);
    assert!(MAX_TERMS == 16 && size_of::<SumOfRows>() == 18 * 24 + 64 + 40);
    assert!(size_of::<CombineRows>() == MAX_SUMS * size_of::<SumOfRows>() + 8);
    assert!(size_of::<CombineStrided>() == 18 * 112 + 64 + 24);
    assert!(size_of::<ComparedRows>() == 128 && size_of::<ComparedStrided>() == 464);
    assert!(size_of::<LadderRows>() == 6 * 24 + 32 && size_of::<LadderStrided>() == 6 * 112 + 24);
};
