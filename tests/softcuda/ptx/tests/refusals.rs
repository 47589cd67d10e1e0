//! What is not understood, or not exact, is refused when the module is loaded.

mod common;

use common::{BODY, module};
use softcuda_ptx::Module;

fn refusal(text: &str) -> String {
    Module::parse(text).err().unwrap_or_else(|| panic!("it was accepted:\n{text}"))
}

#[test]
fn approximations_and_flushing_are_refused() {
    for statement in [
        "add.ftz.f32 %f0, %f1, %f2",
        "div.full.f32 %f0, %f1, %f2",
        "div.approx.f32 %f0, %f1, %f2",
        "rcp.approx.f32 %f0, %f1",
        "sqrt.approx.f32 %f0, %f1",
        "rsqrt.approx.f32 %f0, %f1",
        "ex2.approx.ftz.f32 %f0, %f1",
        "tanh.approx.f32 %f0, %f1",
        "mul.rz.f32 %f0, %f1, %f2",
        "fma.rn.sat.f32 %f0, %f1, %f2, %f3",
        "cvt.rn.ftz.f16.f32 %h0, %f1",
        "setp.lt.ftz.f32 %p0, %f0, %f1",
    ] {
        let error = refusal(&module("", &format!("{statement};")));
        let opcode = statement.split(' ').next().unwrap();
        assert!(error.contains(&format!("test: PTX line {BODY}: `{opcode}`")), "{error}");
    }
}

#[test]
fn unknown_opcodes_modifiers_types_and_names_are_refused() {
    for (statement, why) in [
        ("frobnicate.u32 %r0, %r1", "the opcode is not supported"),
        ("add.cc.u32 %r0, %r1, %r2", "`.cc` is not supported"),
        ("add.f16 %h0, %h1, %h2", "the type .f16 is not supported"),
        ("add.u32 %r0, %r1", "2 operands where 3 were expected"),
        ("add.u32 %r0, %r1, %q2", "`%q2` is not Word"),
        ("add.u32 %r0, %r1, %nothing", "unknown name `%nothing`"),
        ("mov.u32 %r0, %clock", "unknown name `%clock`"),
        ("add.f32 %f0, %f1, 1", "is not a .f32"),
        ("mul.u32 %r0, %r1, %r2", "without `.lo` it is not supported"),
        ("div.f32 %f0, %f1, %f2", "without `.rn` it is not supported"),
        ("bra NOWHERE", "unknown label `NOWHERE`"),
        ("shfl.bfly.b32 %r0, %r1, 1, 31", "without `.sync` it is not supported"),
        ("ld.global.v2.u32 %r0, [%data]", "1 registers for 2 elements"),
        ("ld.global.weird.u32 %r0, [%data]", "`.weird` is not supported"),
        ("ld.global.u64 %r0, [%data]", "`%r0` is too narrow"),
        ("st.const.u32 [%data], %r0", "Const memory cannot be written"),
        ("atom.global.add.f16 %h0, [%data], %h1", "the type .f16 is not supported"),
        ("cvt.f16.f32 %h0, %f0", "not supported"),
        ("barrier.sync 0", "without `.aligned` it is not supported"),
        ("call.uni foo, (%r0)", "PTX line 12"),
        ("setp.foo.u32 %p0, %r0, %r1", "`.foo` is not supported"),
        ("cvt.u32.f32 %r0, %f0", "an integral rounding was expected"),
    ] {
        let error = refusal(&module("", &format!("{statement};")));
        assert!(error.contains(why), "`{statement}`: {error}");
    }
}

#[test]
fn broken_texts_are_refused_with_their_line() {
    for (text, why) in [
        ("", "`.version` or `.target` is missing"),
        (".version 7.0\n.target sm_80\n.address_size 32", "PTX line 3: only 64-bit"),
        (
            ".version 7.0\n.target sm_80\n.func f() { ret; }",
            "PTX line 2: functions that are not inlined",
        ),
        (".version 7.0\n.target sm_80\n.entry f() {\nadd.u32 %r0", "the text ends in the middle"),
        (
            ".version 7.0\n.target sm_80\n.entry f() {\n.reg .b99 %r0;\n}",
            "PTX line 4: `.b99` is not a known type",
        ),
        (".version 7.0\n.target sm_80\n.entry f() {\nL: L: ret;\n}", "label `L` is there twice"),
        ("/* no end", "comment without an end"),
    ] {
        let error = refusal(text);
        assert!(error.contains(why), "{error}");
    }
}
