//! What an operation does depends on neither where it is done, nor the layout of its tensors, nor the
//! number of threads: the backend under test on tensors of every kind, held against one host thread
//! on dense ones. Elements agree bit for bit, but for the payload of a NaN; sums as the specification
//! in `ops/mod.rs` says.
mod support;

use diffcache::ops::any::Any;
use diffcache::ops::cuda::Cuda;
use diffcache::ops::host::{Host, Level};
use diffcache::ops::memory::Memory;
use diffcache::ops::{Comparison, MAX_RUNGS, MAX_TERMS, Ops, Rounding, Sum, View};
use diffcache::rule::Change;
use proptest::prelude::*;
use std::sync::Arc;
use support::{DTYPES, Dtype, Tensor, device, is_sum, noise, properties, values_of};

// ---- two places for one operation ----

fn memory() -> Arc<Memory> {
    Memory::new(None, 0)
}

fn one_thread() -> Host {
    Host::new(memory(), 1)
}

fn under_test() -> Any {
    let mut ops = match device::on_cuda() {
        false => Any::Host(Host::new(memory(), 3)),
        true => Any::Cuda(Box::new(Cuda::new(memory(), 0, 1))),
    };
    ops.begin(device::stream()).expect("a stream");
    ops
}

fn finish(ops: &mut Any) {
    ops.finish_call().expect("no operation failed");
}

/// Elements side by side in the host's memory.
struct Dense {
    words: Vec<u64>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Dense {
    fn of(tensor: &Tensor) -> Self {
        let bytes = tensor.bytes();
        let mut words = vec![0; bytes.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut all = [0; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(all);
        }
        Self { words, dtype: tensor.dtype, shape: tensor.shape.clone() }
    }

    fn view(&mut self) -> View {
        let stride: Vec<_> =
            (0..self.shape.len()).map(|axis| self.shape[axis + 1..].iter().product()).collect();
        // It names elements of `words`, which the caller keeps while it uses the view.
        unsafe { View::strided(self.words.as_mut_ptr().cast(), self.dtype, &self.shape, &stride) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<_> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(self.shape.iter().product::<usize>() * self.dtype.size());
        bytes
    }
}

fn dense(tensors: &[Tensor]) -> (Vec<Dense>, Vec<View>) {
    let mut all: Vec<_> = tensors.iter().map(Dense::of).collect();
    let views = all.iter_mut().map(Dense::view).collect();
    (all, views)
}

fn views(tensors: &[Tensor]) -> Vec<View> {
    tensors.iter().map(Tensor::view).collect()
}

/// A NaN is a NaN; all else has its bits.
#[track_caller]
fn assert_same(tensor: &Tensor, expected: &Dense, what: &str) {
    let dtype = tensor.dtype;
    let (got, expected) = (values_of(dtype, &tensor.bytes()), values_of(dtype, &expected.bytes()));
    for (k, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(same, "{what}, element {k}: {got:e} is not {expected:e}");
    }
}

/// Does one thing to the same tensors in both places.
macro_rules! in_both_places {
    ($what:expr, $tensors:expr, |$ops:ident, $views:ident| $work:expr) => {{
        let (what, tensors): (&str, &[Tensor]) = ($what, $tensors);
        let around: Vec<_> = tensors.iter().map(Tensor::surroundings).collect();
        let (expected, $views) = dense(tensors);
        let theirs = {
            let $ops = &mut one_thread();
            $work
        };
        let ours = {
            let (mut any, $views) = (under_test(), views(tensors));
            let $ops = &mut any;
            let result = $work;
            finish(&mut any);
            result
        };
        for (k, (tensor, expected)) in tensors.iter().zip(&expected).enumerate() {
            assert_same(tensor, expected, &format!("{what}, tensor {k}"));
        }
        for (k, (tensor, around)) in tensors.iter().zip(&around).enumerate() {
            assert_eq!(&tensor.surroundings(), around, "{what}, around tensor {k}");
        }
        (ours, theirs)
    }};
}

// ---- tensors ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Dense,
    /// One element behind a boundary of 16 bytes.
    Shifted,
    /// One byte behind it.
    Odd,
    /// Rows that begin on boundaries, with room between them.
    Pitched,
    /// Rows that do not.
    Crooked,
    /// A part of a joint buffer: planes with room between them.
    Part,
    /// The first axis is the fastest.
    Permuted,
    /// Every second element.
    Spread,
    /// One plane for all. Only to be read.
    Repeated,
}

const WRITABLE: [Layout; 8] = [
    Layout::Dense,
    Layout::Shifted,
    Layout::Odd,
    Layout::Pitched,
    Layout::Crooked,
    Layout::Part,
    Layout::Permuted,
    Layout::Spread,
];

type Extents = [usize; 3];

impl Layout {
    fn tensor(self, dtype: Dtype, shape: Extents) -> Tensor {
        let [planes, rows, columns] = shape;
        let pitch = columns.next_multiple_of(8) + 8;
        let (stride, offset) = match self {
            Self::Dense => ([rows * columns, columns, 1], 0),
            Self::Shifted => ([rows * columns, columns, 1], dtype.size()),
            Self::Odd => ([rows * columns, columns, 1], 1),
            Self::Pitched => ([rows * pitch, pitch, 1], 0),
            Self::Crooked => ([rows * (columns + 1), columns + 1, 1], 0),
            Self::Part => ([(rows * columns).next_multiple_of(8) + 16, columns, 1], 0),
            Self::Permuted => ([1, planes, planes * rows], 0),
            Self::Spread => ([2 * rows * columns, 2 * columns, 2], 0),
            Self::Repeated => ([0, columns, 1], 0),
        };
        Tensor::strided(dtype, &shape, &stride, offset)
    }
}

/// What is in a tensor.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// Between -1 and 1.
    Tame,
    /// Any bits: NaN, infinities, numbers below the normal ones, both zeros.
    Wild,
}

/// A tensor of one operation.
#[derive(Clone, Copy, Debug)]
struct Spec {
    dtype: Dtype,
    layout: Layout,
    content: Content,
    seed: u64,
}

impl Spec {
    fn tensor(self, shape: Extents) -> Tensor {
        let tensor = self.layout.tensor(self.dtype, shape);
        match self.content {
            Content::Tame => tensor.set(&noise(self.seed, tensor.len())),
            Content::Wild => tensor.set_bytes(&wild(self.dtype, self.seed, tensor.len())),
        }
        tensor
    }
}

/// Every eighth value is at an edge of f32, f16 or bf16; the others are any bits.
fn wild(dtype: Dtype, seed: u64, len: usize) -> Vec<u8> {
    const EDGES: [f32; 16] = [
        0.0,
        -0.0,
        1.0,
        65504.0,
        65519.9,
        65520.0,
        3.3e38,
        3.4e38,
        6e-8,
        2.9e-8,
        6e-5,
        1e-45,
        1e-38,
        1.003_906_2,
        1.000_488_3,
        f32::INFINITY,
    ];
    let bits = noise(seed, 4 * len).into_iter().map(|x| (x * (1 << 23) as f32) as i32 as u32);
    let words: Vec<u32> = bits.collect();
    let value = |four: &[u32]| {
        let any = four[0] << 16 ^ four[1];
        match four[2] % 8 {
            0 => EDGES[four[3] as usize % EDGES.len()].copysign([1.0, -1.0][any as usize % 2]),
            _ => f32::from_bits(any),
        }
    };
    let values: Vec<f32> = words.chunks(4).map(value).collect();
    let bytes = values.iter().zip(&words).flat_map(|(x, any)| match dtype {
        Dtype::F32 => x.to_ne_bytes().to_vec(),
        Dtype::F16 if any.is_multiple_of(2) => half::f16::from_f32(*x).to_ne_bytes().to_vec(),
        Dtype::Bf16 if any.is_multiple_of(2) => half::bf16::from_f32(*x).to_ne_bytes().to_vec(),
        _ => (x.to_bits() as u16).to_ne_bytes().to_vec(),
    });
    bytes.collect()
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(&DTYPES[..])
}

/// Empty ones, short rows, whole and broken groups of eight, more than a block of a sum, rows in
/// which a thread has more than one vector.
fn extents() -> impl Strategy<Value = Extents> {
    prop_oneof![
        (0..=3usize, 0..=4usize, 0..=40usize).prop_map(|(p, r, c)| [p, r, c]),
        (1..=3usize, 1..=4usize, 1..=12usize).prop_map(|(p, r, c)| [p, r, 8 * c]),
        (1..=5000usize).prop_map(|n| [1, 1, n]),
        (2..=3usize, 1000..=2600usize).prop_map(|(p, n)| [p, 1, n]),
    ]
}

/// Most engines have dense tensors or parts of joint buffers, and those have kernels of their own.
fn layout() -> impl Strategy<Value = fn(u64) -> Layout> {
    prop_oneof![
        Just((|_| Layout::Dense) as fn(u64) -> Layout),
        Just((|seed| [Layout::Dense, Layout::Pitched][seed as usize % 2]) as fn(u64) -> Layout),
        Just((|seed| WRITABLE[seed as usize % WRITABLE.len()]) as fn(u64) -> Layout),
    ]
}

/// Half of the time all have one dtype: these have kernels of their own too.
fn specs(n: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Spec>> {
    let content = || prop::sample::select(&[Content::Tame, Content::Wild][..]);
    let one = (dtype(), 0..1u64 << 20);
    let all = prop::collection::vec(one, n);
    (layout(), content(), prop::option::of(dtype()), all).prop_map(|(layout, content, of, all)| {
        let spec =
            |(own, seed)| Spec { dtype: of.unwrap_or(own), layout: layout(seed), content, seed };
        all.into_iter().map(spec).collect()
    })
}

fn tensors(specs: &[Spec], shape: Extents) -> Vec<Tensor> {
    specs.iter().map(|spec| spec.tensor(shape)).collect()
}

fn weight(number: u64) -> f64 {
    const WEIGHTS: [f64; 8] = [1.0, -1.0, 0.5, 1.0 / 3.0, -2.25, 1e-3, 3.3, 1e20];
    WEIGHTS[number as usize % WEIGHTS.len()]
}

// ---- element by element ----

proptest! {
    #![proptest_config(properties(240))]

    #[test]
    fn a_copy_is_rounded_to_where_it_goes(
        specs in specs(2..=2), shape in extents(), repeated in any::<bool>(),
    ) {
        let [to, mut from] = [specs[0], specs[1]];
        if repeated {
            from.layout = Layout::Repeated;
        }
        in_both_places!("copy", &tensors(&[to, from], shape), |ops, v| ops.copy(v[0], v[1]));
    }

    #[test]
    fn a_difference_may_take_the_place_of_its_base(
        specs in specs(3..=3), shape in extents(), over in any::<bool>(),
    ) {
        let out = if over { 2 } else { 0 };
        in_both_places!("subtract", &tensors(&specs, shape), |ops, v| {
            ops.subtract(v[out], v[1], v[2])
        });
    }

    /// Each of its own extents, dtypes and layouts, in a place of its own or in that of a tensor it
    /// reads; as many as a launch takes and more, with like and unlike numbers of terms.
    #[test]
    fn sums_are_formed_together_as_they_are_alone(
        sums in prop::collection::vec((specs(4..=4), extents(), 0..4usize), 1..=6),
        each_term in any::<bool>(),
        terms in prop::collection::vec(0..=5usize, 6),
        alike in prop::bool::weighted(0.7),
    ) {
        let rounding = if each_term { Rounding::EachTerm } else { Rounding::Once };
        let all: Vec<_> = sums.iter().flat_map(|(specs, shape, _)| tensors(specs, *shape)).collect();
        in_both_places!("combine_all", &all, |ops, v| {
            ops.combine_all(rounding, |form| {
                for (k, (_, _, out)) in sums.iter().enumerate() {
                    let own = &v[4 * k..][..4];
                    let n = terms[if alike { 0 } else { k }];
                    let term = |j| (weight((k + j) as u64), own[2 + j % 2]);
                    let terms: Vec<_> = (0..n).map(term).collect();
                    form(Sum::new(own[*out], Some(own[1]), &terms));
                }
            })
        });
    }

    /// The first is written, unless one of the others is; the second is `x`.
    #[test]
    fn a_sum_of_up_to_sixteen_terms_may_take_the_place_of_any_of_them(
        specs in specs(2..=18),
        shape in extents(),
        has_x in any::<bool>(),
        each_term in any::<bool>(),
        place in 0..36usize,
        repeated in any::<bool>(),
    ) {
        let (mut specs, n) = (specs, 18);
        let out = if place < specs.len() && (place != 1 || has_x) { place } else { 0 };
        for (k, spec) in specs.iter_mut().enumerate() {
            if repeated && k != out && k % 3 == 1 {
                spec.layout = Layout::Repeated;
            }
        }
        prop_assert!(specs.len() <= n);
        let rounding = if each_term { Rounding::EachTerm } else { Rounding::Once };
        in_both_places!("combine", &tensors(&specs, shape), |ops, v| {
            let terms: Vec<_> =
                v[2..].iter().zip(&specs[2..]).map(|(y, spec)| (weight(spec.seed), *y)).collect();
            ops.combine(v[out], has_x.then_some(v[1]), &terms, rounding)
        });
    }

    #[test]
    fn a_value_climbs_a_ladder(
        specs in specs(1..=1 + MAX_RUNGS), shape in extents(), held in 0..=MAX_RUNGS,
        gap in prop::sample::select(&[1.0, 2.0, 3.0, 0.5, 7.0][..]),
    ) {
        let held = held.min(specs.len() - 1);
        in_both_places!("ladder", &tensors(&specs, shape), |ops, v| {
            ops.ladder(v[0], &v[1..], held, gap)
        });
    }
}

// ---- sums ----

#[track_caller]
fn assert_agree(ours: Change, theirs: Change) {
    assert_eq!((ours.count, ours.dtype), (theirs.count, theirs.dtype));
    let sums = |change: Change| [change.difference, change.value, change.reference];
    for (ours, theirs) in sums(ours).into_iter().zip(sums(theirs)) {
        assert!(is_sum(ours, theirs), "{ours:e} is not {theirs:e}");
    }
}

/// Which tensors of a comparison there are besides `x` and `earlier`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    Nothing,
    /// In a tensor of its own, without a base.
    Value,
    /// In a tensor of its own.
    Difference,
    /// In the place of the base.
    OverBase,
    /// A difference is measured, and not kept.
    Measured,
}

const KEPT: [Kept; 5] =
    [Kept::Nothing, Kept::Value, Kept::Difference, Kept::OverBase, Kept::Measured];

impl Kept {
    /// Of `x`, `earlier`, `base` and `keep`.
    fn comparison(self, v: &[View]) -> Comparison {
        let base = matches!(self, Self::Difference | Self::OverBase | Self::Measured);
        let keep = match self {
            Self::Nothing | Self::Measured => None,
            Self::Value | Self::Difference => Some(v[3]),
            Self::OverBase => Some(v[2]),
        };
        Comparison { x: v[0], earlier: v[1], base: base.then_some(v[2]), keep }
    }
}

#[derive(Clone, Debug)]
struct Compared {
    shape: Extents,
    specs: Vec<Spec>,
    kept: Kept,
}

fn compared() -> impl Strategy<Value = Compared> {
    (extents(), specs(4..=4), prop::sample::select(&KEPT[..])).prop_map(
        |(shape, mut specs, kept)| {
            specs.iter_mut().for_each(|spec| spec.content = Content::Tame);
            Compared { shape, specs, kept }
        },
    )
}

proptest! {
    #![proptest_config(properties(240))]

    #[test]
    fn all_comparisons_are_one_measurement(
        all in prop::collection::vec(compared(), 1..=6), rounded in any::<bool>(),
        spoilt in prop::sample::select(&[None, None, Some(f32::NAN), Some(f32::INFINITY)][..]),
    ) {
        let tensors: Vec<_> = all.iter().flat_map(|one| tensors(&one.specs, one.shape)).collect();
        if let Some(value) = spoilt {
            let x = &tensors[0];
            let last = x.len().saturating_sub(1);
            x.set(&(0..x.len()).map(|k| if k == last { value } else { 0.5 }).collect::<Vec<_>>());
        }
        let (ours, theirs) = in_both_places!("measure", &tensors, |ops, v| {
            let comparisons: Vec<_> =
                v.chunks(4).zip(&all).map(|(v, one)| one.kept.comparison(v)).collect();
            let pending = ops.measure(&comparisons, rounded);
            ops.read(pending)
        });
        assert_agree(ours, theirs);
    }
}

#[test]
fn what_has_not_changed_measures_exactly_zero() {
    for dtype in DTYPES {
        // A difference, rounded to the dtype in which it was kept.
        let [x, base, earlier] = [1, 2, 3].map(|seed| {
            let tensor = Tensor::new(dtype, &[3, 1000]);
            tensor.set(&noise(seed, 3000));
            tensor
        });
        let mut ops = under_test();
        ops.subtract(earlier.view(), x.view(), base.view());
        let (x, base, earlier) = (x.view(), Some(base.view()), earlier.view());
        let pending = ops.measure(&[Comparison { x, base, earlier, keep: None }], false);
        let change = ops.read(pending);
        finish(&mut ops);
        assert_eq!(change.difference, 0.0);
        assert!(change.value > 0.0 && change.value == change.reference);
    }
}

#[test]
fn a_measurement_comes_out_the_same_every_time() {
    let tensors: Vec<_> = (0..3)
        .flat_map(|k| {
            let spec = |seed| Spec {
                dtype: DTYPES[k],
                layout: [Layout::Dense, Layout::Spread, Layout::Pitched][k],
                content: Content::Tame,
                seed,
            };
            [spec(k as u64), spec(k as u64 + 9)].map(|spec| spec.tensor([2, 30, 777]))
        })
        .collect();
    let measure = || {
        let (mut ops, views) = (under_test(), views(&tensors));
        let comparison = |v: &[View]| Comparison { x: v[0], base: None, earlier: v[1], keep: None };
        let comparisons: Vec<_> = views.chunks(2).map(comparison).collect();
        // Several in flight at once.
        let pending = [(); 3].map(|()| ops.measure(&comparisons, false));
        let changes = pending.map(|pending| ops.read(pending));
        finish(&mut ops);
        changes.map(|c| [c.difference, c.value, c.reference].map(f64::to_bits))
    };
    let first = measure();
    assert!(first.iter().all(|other| *other == first[0]));
    assert!((0..5).all(|_| measure() == first));
}

// ---- instruction sets ----

/// What all operations leave in `tensors`, as bytes of every one, and the sums.
fn all_operations(
    host: &mut Host,
    tensors: &[Tensor],
    rounding: Rounding,
) -> (Vec<Vec<u8>>, Vec<u64>) {
    let v = views(tensors);
    let mut sums = Vec::new();
    for kept in KEPT {
        let pending = host.measure(&[kept.comparison(&v)], rounding == Rounding::EachTerm);
        let change = host.read(pending);
        sums.extend([change.difference, change.value, change.reference].map(f64::to_bits));
    }
    let terms: Vec<_> = (0..MAX_TERMS).map(|k| (weight(k as u64), v[k % 3])).collect();
    for n in [0, 1, 2, 3, 4, 5, MAX_TERMS] {
        host.combine(v[4], Some(v[3]), &terms[..n], rounding);
        host.combine(v[3], None, &terms[..n.max(1)], rounding);
        host.combine(v[4], Some(v[4]), &terms[..n], rounding);
    }
    host.subtract(v[2], v[0], v[1]);
    host.ladder(v[0], &v[1..4], 2, 3.0);
    host.copy(v[4], v[1]);
    (tensors.iter().map(Tensor::bytes).collect(), sums)
}

/// NaN, infinities and numbers below the normal ones among them; tails of every kind; each dtype
/// alone and with others. A NaN is a NaN.
#[test]
fn every_instruction_set_gives_the_same_bits() {
    let dtypes = DTYPES.into_iter().map(|dtype| [dtype; 5]);
    let mixed = DTYPES.into_iter().zip([[0, 1, 1, 2, 0], [2, 0, 0, 1, 1], [1, 2, 2, 0, 2]]);
    let mixed = mixed.map(|(_, order)| order.map(|k: usize| DTYPES[k]));
    let lengths = [1, 7, 31, 32, 33, 100, 4095, 4096, 4128, 8191, 9000];
    for (dtypes, content) in
        dtypes.chain(mixed).flat_map(|d| [(d, Content::Tame), (d, Content::Wild)])
    {
        for (k, length) in lengths.into_iter().enumerate() {
            for layout in [Layout::Dense, Layout::Odd, Layout::Pitched, Layout::Spread] {
                let specs = dtypes.map(|dtype| Spec { dtype, layout, content, seed: k as u64 });
                let seeded =
                    specs.iter().zip(0..).map(|(spec, n)| Spec { seed: spec.seed + n, ..*spec });
                let specs: Vec<_> = seeded.collect();
                for rounding in [Rounding::Once, Rounding::EachTerm] {
                    let results: Vec<_> = Level::available()
                        .map(|level| {
                            let tensors = tensors(&specs, [1, 1, length]);
                            let tensors: Vec<_> = tensors.iter().map(Tensor::on_host).collect();
                            let mut host = one_thread().with_level(level);
                            (level, all_operations(&mut host, &tensors, rounding))
                        })
                        .collect();
                    let (_, (expected, sums)) = &results[0];
                    for (level, (bytes, got)) in &results[1..] {
                        let what = format!("{level:?} {dtypes:?} {layout:?} {length}");
                        for ((bytes, expected), dtype) in bytes.iter().zip(expected).zip(dtypes) {
                            let bits = |bytes| {
                                let tame = |x: f32| if x.is_nan() { f32::NAN } else { x }.to_bits();
                                values_of(dtype, bytes).into_iter().map(tame).collect::<Vec<_>>()
                            };
                            assert_eq!(bits(bytes), bits(expected), "{what}");
                        }
                        let tame =
                            |bits: &u64| Some(*bits).filter(|b| !f64::from_bits(*b).is_nan());
                        assert!(got.iter().map(tame).eq(sums.iter().map(tame)), "{what}");
                    }
                }
            }
        }
    }
}

// ---- low frequencies ----

#[test]
fn the_low_frequencies_of_every_plane_stay() {
    // One wave, none but the constant, odd sides, sides far apart, more than a block's threads.
    for (planes, height, width) in [
        (1, 5, 5),
        (3, 4, 4),
        (2, 1, 9),
        (2, 7, 31),
        (3, 16, 16),
        (1, 15, 26),
        (2, 30, 45),
        (1, 64, 40),
    ] {
        let shape = [planes, height, width];
        let x = Spec { dtype: Dtype::F32, layout: Layout::Dense, content: Content::Tame, seed: 3 };
        let tensors = [x.tensor(shape), Tensor::new(Dtype::F32, &shape)];
        let (expected, host) = dense(&tensors);
        one_thread().low_pass(host[1], host[0], height, width);
        let mut ops = under_test();
        ops.low_pass(tensors[1].view(), tensors[0].view(), height, width);
        finish(&mut ops);
        let expected = values_of(Dtype::F32, &expected[1].bytes());
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        for (k, (got, expected)) in tensors[1].values().iter().zip(&expected).enumerate() {
            let near = (got - expected).abs() <= 5e-6 * largest;
            assert!(near, "{shape:?}, {k}: {got} is not {expected}");
        }
    }
}

// ---- size ----

/// More elements than any grid has threads to begin with.
#[test]
fn a_million_elements_and_some_are_like_a_few() {
    let shape = [1, 1, (1 << 20) + 4099];
    let mixed = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::Bf16];
    for (layout, dtypes) in [
        (Layout::Dense, mixed),
        (Layout::Dense, [Dtype::Bf16; 4]),
        (Layout::Dense, [Dtype::F32; 4]),
        (Layout::Shifted, mixed),
    ] {
        let specs = dtypes.map(|dtype| {
            let seed = dtype.size() as u64;
            Spec { dtype, layout, content: Content::Tame, seed }
        });
        let tensors = tensors(&specs, shape);
        let (ours, theirs) = in_both_places!("all", &tensors, |ops, v| {
            ops.combine(v[0], Some(v[1]), &[(-0.5, v[2])], Rounding::Once);
            ops.ladder(v[0], &v[2..], 1, 2.0);
            let one = Comparison { x: v[0], base: Some(v[1]), earlier: v[3], keep: Some(v[2]) };
            let pending = ops.measure(&[one], false);
            ops.read(pending)
        });
        assert_agree(ours, theirs);
    }
}
