//! Small kernels around a few instructions, and the memory they run on.
#![allow(dead_code)]

use softcuda_ptx::{Counts, Fault, Launch, Memory, Module, run_at_most};

/// Enough for every kernel here but those that never end.
const LIMIT: u64 = 100_000;

/// Device memory made of vectors; anything else is refused.
#[derive(Default)]
pub struct Device {
    arrays: Vec<(u64, u64)>,
}

impl Device {
    pub fn add<T>(&mut self, array: &mut [T]) -> u64 {
        let start = array.as_mut_ptr() as u64;
        self.arrays.push((start, start + size_of_val(array) as u64));
        start
    }
}

impl Memory for Device {
    fn check(&self, address: u64, bytes: usize, _write: bool) -> Result<(), String> {
        let inside =
            |(start, end): &(u64, u64)| address >= *start && address + bytes as u64 <= *end;
        if self.arrays.iter().any(inside) { Ok(()) } else { Err("not allocated".into()) }
    }
}

/// A module with the one kernel `test(data)`, for sm_80. `%data` holds the parameter, `%tid` the
/// thread, `%own` the address of the thread's 8 bytes of the data.
pub fn module(declarations: &str, body: &str) -> String {
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n{declarations}
.visible .entry test(.param .u64 test_data)
{{
.reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<20>; .reg .b64 %q<20>; .reg .f32 %f<10>; .reg .f64 %g<10>;
.reg .b32 %thread; .reg .b64 %data, %own;
ld.param.u64 %data, [test_data];
mov.u32 %thread, %tid.x;
mad.wide.u32 %own, %thread, 8, %data;
{body}
ret;
}}\n"
    )
}

/// The line of the module in which the body starts, where there are no declarations.
pub const BODY: u32 = 12;

pub struct Outcome {
    pub data: Vec<u64>,
    pub result: Result<Counts, Fault>,
}

/// Runs a body over blocks of threads on `data`, which is 0 but for what is given.
pub struct Run<'a> {
    pub declarations: &'a str,
    pub body: &'a str,
    pub blocks: u32,
    pub threads: u32,
    pub dynamic_shared: usize,
    pub data: Vec<u64>,
    pub seed: u64,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Run {
            declarations: "",
            body: "",
            blocks: 1,
            threads: 32,
            dynamic_shared: 0,
            data: Vec::new(),
            seed: 0,
        }
    }
}

impl Run<'_> {
    pub fn outcome(self) -> Outcome {
        let text = module(self.declarations, self.body);
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let mut data = self.data;
        data.resize(data.len().max(self.threads as usize), 0);
        let mut device = Device::default();
        let address = device.add(&mut data);
        let launch = Launch {
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            dynamic_shared: self.dynamic_shared,
            params: &address.to_le_bytes(),
            seed: self.seed,
        };
        let result = run_at_most(module.function("test").unwrap(), &launch, &device, LIMIT);
        Outcome { data, result }
    }

    pub fn data(self) -> Vec<u64> {
        let Outcome { data, result } = self.outcome();
        result.unwrap_or_else(|fault| panic!("{fault}"));
        data
    }

    pub fn fault(self) -> Fault {
        self.outcome().result.expect_err("it was meant to fail")
    }
}

/// One warp.
pub fn data_after(body: &str) -> Vec<u64> {
    Run { body, ..Run::default() }.data()
}

/// What a register can hold, with the values at which arithmetic goes wrong.
pub trait Value: Copy + std::fmt::Debug {
    /// Of the register, and of the load and store.
    const REGISTER: &'static str;
    fn edges() -> Vec<Self>;
    /// A NaN as the hardware writes it.
    fn bits(self) -> u64;
}

macro_rules! integer {
    ($($ty:ty, $register:literal, $unsigned:ty;)+) => {$(
        impl Value for $ty {
            const REGISTER: &'static str = $register;
            fn edges() -> Vec<$ty> {
                let (low, high) = (<$ty>::MIN, <$ty>::MAX);
                vec![0, 1, 2, 3, 7, 31, 32, 63, 100, low, low + 1, high, high - 1, high / 2, high / 2 + 1, high / 3, low / 3,
                    (0 as $ty).wrapping_sub(1), (0 as $ty).wrapping_sub(7)]
            }
            fn bits(self) -> u64 {
                self as $unsigned as u64
            }
        }
    )+};
}
integer! { u16, "b16", u16; i16, "b16", u16; u32, "b32", u32; i32, "b32", u32; u64, "b64", u64; i64, "b64", u64; }

impl Value for f32 {
    const REGISTER: &'static str = "f32";
    fn edges() -> Vec<f32> {
        let mut edges = vec![f32::NAN, f32::from_bits(0xffc0_1234), f32::from_bits(0x7f80_0001)];
        for x in [
            0.0,
            1.0,
            0.5,
            1.5,
            2.5,
            3.0,
            1e-45,
            1.1e-38,
            f32::MIN_POSITIVE,
            f32::EPSILON,
            16_777_216.0,
            16_777_219.0,
            65504.0,
            65520.0,
            2.1e9,
            4.3e9,
            9.3e18,
            1.9e19,
            1e30,
            f32::MAX,
            f32::INFINITY,
            0.1,
            6.0e-8,
            2.9e-8,
            126.7,
            127.5,
            254.5,
            255.5,
            32767.5,
            65535.5,
            1.000_976_6,
            1.003_906_3,
        ] {
            edges.extend([x, -x]);
        }
        edges
    }
    fn bits(self) -> u64 {
        if self.is_nan() { 0x7fff_ffff } else { self.to_bits() as u64 }
    }
}

impl Value for f64 {
    const REGISTER: &'static str = "f64";
    fn edges() -> Vec<f64> {
        let mut edges: Vec<f64> = f32::edges().into_iter().map(f64::from).collect();
        for x in [
            5e-324,
            f64::MIN_POSITIVE,
            f64::MAX,
            1e-60,
            9_007_199_254_740_993.0,
            1.0 / 3.0,
            1.000_000_06,
            3.5e38,
        ] {
            edges.extend([x, -x]);
        }
        edges
    }
    fn bits(self) -> u64 {
        // Which NaN a sum of two NaNs is, is not specified for f64.
        if self.is_nan() { f64::NAN.to_bits() } else { self.to_bits() }
    }
}

/// Runs `body`, which turns `%a`, `%b`, `%c` into `%d`, over all cases of up to three operands.
pub fn results(body: &str, registers: &[&str], result: &str, cases: &[Vec<u64>]) -> Vec<u64> {
    const THREADS: usize = 256;
    let mut text = String::from("mad.wide.u32 %own, %thread, 32, %data;\n");
    text += &format!("mov.u32 %r0, %ctaid.x; mad.wide.u32 %own, %r0, {}, %own;\n", 32 * THREADS);
    text += &format!(".reg .{result} %d;\n");
    for (i, register) in registers.iter().enumerate() {
        let name = ["%a", "%b", "%c"][i];
        text +=
            &format!(".reg .{register} {name}; ld.global.{register} {name}, [%own+{}];\n", 8 * i);
    }
    text += &format!("{body}\nst.global.{result} [%own+24], %d;\n");
    let blocks = cases.len().div_ceil(THREADS);
    let mut data = vec![0u64; blocks * THREADS * 4];
    for (case, row) in cases.iter().zip(data.chunks_exact_mut(4)) {
        row[..case.len()].copy_from_slice(case);
    }
    let run =
        Run { body: &text, blocks: blocks as u32, threads: THREADS as u32, data, ..Run::default() };
    run.data().chunks_exact(4).take(cases.len()).map(|row| row[3]).collect()
}

fn check<D: Value>(body: &str, registers: &[&str], cases: Vec<(Vec<u64>, String, D)>) {
    let inputs: Vec<Vec<u64>> = cases.iter().map(|(bits, ..)| bits.clone()).collect();
    let found = results(body, registers, D::REGISTER, &inputs);
    for ((_, operands, expected), found) in cases.iter().zip(found) {
        let found = if D::REGISTER == "f64" { f64::from_bits(found).bits() } else { found };
        assert_eq!(
            found,
            expected.bits(),
            "`{body}` of {operands}: {found:#x} instead of {expected:?}"
        );
    }
}

pub fn unary<A: Value, D: Value>(opcode: &str, expected: impl Fn(A) -> D) {
    unary_body(&format!("{opcode} %d, %a;"), expected);
}

pub fn unary_body<A: Value, D: Value>(body: &str, expected: impl Fn(A) -> D) {
    let cases =
        A::edges().into_iter().map(|a| (vec![raw(a)], format!("{a:?}"), expected(a))).collect();
    check(body, &[A::REGISTER], cases);
}

pub fn binary<A: Value, B: Value, D: Value>(opcode: &str, expected: impl Fn(A, B) -> D) {
    binary_body(&format!("{opcode} %d, %a, %b;"), expected);
}

pub fn binary_body<A: Value, B: Value, D: Value>(body: &str, expected: impl Fn(A, B) -> D) {
    let mut cases = Vec::new();
    for a in A::edges() {
        for b in B::edges() {
            cases.push((vec![raw(a), raw(b)], format!("{a:?}, {b:?}"), expected(a, b)));
        }
    }
    check(body, &[A::REGISTER, B::REGISTER], cases);
}

pub fn ternary<A: Value, B: Value, C: Value, D: Value>(
    opcode: &str,
    expected: impl Fn(A, B, C) -> D,
) {
    let mut cases = Vec::new();
    for a in A::edges() {
        for b in B::edges() {
            for c in C::edges() {
                cases.push((
                    vec![raw(a), raw(b), raw(c)],
                    format!("{a:?}, {b:?}, {c:?}"),
                    expected(a, b, c),
                ));
            }
        }
    }
    check(&format!("{opcode} %d, %a, %b, %c;"), &[A::REGISTER, B::REGISTER, C::REGISTER], cases);
}

/// The bits as they are, payloads of NaNs included.
fn raw<T: Value>(value: T) -> u64 {
    let mut bytes = [0; 8];
    let size = size_of::<T>();
    // SAFETY: every `Value` is a plain number of at most 8 bytes.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), bytes.as_mut_ptr(), size)
    };
    u64::from_le_bytes(bytes)
}
