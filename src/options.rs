//! What a user may choose, as text and as values: one table of keys serves parsing, printing and
//! the list in error messages.
use crate::error::{Result, bail};
use crate::ops::Dtype;
use crate::preset;

pub const MAX_STEPS: usize = 256;
pub const MAX_ORDER: u32 = 4;
pub const MAX_TENSORS: usize = crate::history::MAX_TENSORS;

/// When: the rule that decides, beside the limits and the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing is ever skipped.
    None,
    /// The change of the front residual.
    Change,
    /// The schedule alone: the mask.
    Schedule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Stack,
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Hold,
    Taylor,
    Newton,
}

/// Whose behaviour, quirks included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    None,
    Diffusers,
}

/// A bound on a number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The library's default, which depends on the rule and on `compat`.
    Auto,
    None,
    At(u32),
}

/// A bound on a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    Auto,
    None,
    At(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the preset the rest started from.
    pub preset: &'static str,
    pub rule: When,
    pub scope: Where,
    pub estimator: What,
    pub on_residual: bool,
    pub compat: Compat,
    pub lagged: bool,
    pub share: bool,
    pub fill: u32,
    pub history_dtype: Option<Dtype>,
    pub max_age: Limit,
    pub front_blocks: u32,
    pub back_blocks: u32,
    pub order: u32,
    pub warmup_steps: Limit,
    pub warmup_interval: u32,
    pub last_steps: Limit,
    pub max_consecutive: Limit,
    pub max_total: Limit,
    pub threshold: f64,
    pub max_error: Bound,
    pub max_run_error: Bound,
    pub max_gain: Bound,
    /// `true` computes.
    pub mask: Vec<bool>,
}

struct Key {
    name: &'static str,
    get: fn(&Options) -> String,
    set: fn(&mut Options, &str) -> Option<()>,
    /// What `set` takes.
    allowed: &'static str,
}

/// A key whose name is its field's, and whose value speaks [`Text`].
macro_rules! key {
    ($field:ident, $allowed:expr) => {
        key!($field, $allowed, |_| true)
    };
    ($field:ident, $allowed:expr, $legal:expr) => {
        Key {
            name: stringify!($field),
            get: |options| options.$field.to_text(),
            set: |options, text| {
                let value = Text::from_text(text).filter($legal);
                value.map(|value| options.$field = value)
            },
            allowed: $allowed,
        }
    };
}

const LIMIT: &str = "a whole number, 'auto' or 'none'";
const BOUND: &str = "a number of 0 or more, 'auto' or 'none'";
const SWITCH: &str = "0 or 1";

const KEYS: &[Key] = &[
    key!(rule, "none, change or schedule"),
    key!(scope, "stack or model"),
    key!(estimator, "hold, taylor or newton"),
    key!(threshold, "a number above 0", |x| *x > 0.0),
    key!(front_blocks, "a whole number"),
    key!(back_blocks, "a whole number"),
    key!(order, "0 to 4", |n| *n <= MAX_ORDER),
    key!(on_residual, SWITCH),
    key!(mask, "up to 256 digits 0 and 1, a 1 for each step to compute, or 'none'"),
    key!(warmup_steps, LIMIT),
    key!(warmup_interval, "a whole number above 0", |n| *n > 0),
    key!(last_steps, LIMIT),
    key!(max_consecutive, LIMIT),
    key!(max_total, LIMIT),
    key!(max_age, LIMIT),
    key!(max_error, BOUND),
    key!(max_run_error, BOUND),
    key!(max_gain, BOUND),
    key!(compat, "none or diffusers"),
    key!(lagged, SWITCH),
    key!(share, SWITCH),
    Key {
        name: "fill",
        get: |options| fill_to_text(options.fill),
        set: |options, text| fill_from_text(text).map(|fill| options.fill = fill),
        allowed: "'all', or numbers of tensors like 0:1",
    },
    key!(history_dtype, "tensor, f32, f16 or bf16"),
];

impl Options {
    /// The preset `name`; an unknown name is an error that lists the known ones.
    pub fn preset(name: &str) -> Result<Self> {
        let presets = preset::PRESETS;
        match presets.iter().find(|(known, _)| *known == name) {
            Some((known, options)) => Ok(options(known)),
            None => {
                let names: Vec<_> = presets.iter().map(|(name, _)| *name).collect();
                let hint = suggestion(name, &names);
                bail!(Arg, "no preset is named '{name}'{hint}; there are {}", names.join(", "))
            }
        }
    }

    /// Applies "dbcache,threshold=0.1": a bare first word is a preset. On failure `self` is as
    /// before.
    pub fn parse(&mut self, text: &str) -> Result<()> {
        let mut options = self.clone();
        for (position, item) in text.split(',').map(str::trim).enumerate() {
            match item.split_once('=') {
                Some((key, value)) => options.set(key.trim(), value.trim())?,
                None if item.is_empty() && text.trim().is_empty() => {}
                None if position == 0 => options = Self::preset(item)?,
                None => {
                    bail!(Arg, "'{item}' is not key=value; a preset stands first and only there")
                }
            }
        }
        *self = options;
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            let hint = suggestion(name, &names);
            bail!(Arg, "no option is named '{name}'{hint}; there are {}", names.join(", "))
        };
        let Some(()) = (key.set)(self, value) else {
            bail!(Arg, "{name} is '{value}', allowed is {}", key.allowed)
        };
        Ok(())
    }

    /// The shortest text that [`parse`](Self::parse) reads back as these options: the preset, and
    /// what differs from it.
    pub fn format(&self) -> Result<String> {
        let preset = Self::preset(self.preset)?;
        let differing = KEYS.iter().filter(|key| (key.get)(self) != (key.get)(&preset));
        let changes = differing.map(|key| format!(",{}={}", key.name, (key.get)(self)));
        Ok(std::iter::once(self.preset.to_owned()).chain(changes).collect())
    }
}

/// ", did you mean 'x'?" if one of the names is near.
fn suggestion(name: &str, names: &[&str]) -> String {
    let near = names.iter().map(|known| (distance(name, known), known)).min();
    match near.filter(|(distance, _)| *distance <= name.len().div_ceil(3).min(3)) {
        Some((_, known)) => format!(", did you mean '{known}'?"),
        None => String::new(),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A value of an option as text, both ways exact.
trait Text: Sized {
    fn to_text(&self) -> String;
    fn from_text(text: &str) -> Option<Self>;
}

impl Text for u32 {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for f64 {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|x: &f64| x.is_finite())
    }
}

impl Text for bool {
    fn to_text(&self) -> String {
        u8::from(*self).to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }
}

impl Text for Limit {
    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::None => "none".to_owned(),
            Self::At(steps) => steps.to_string(),
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::None),
            _ => text.parse().ok().filter(|n| *n < u32::MAX - 1).map(Self::At),
        }
    }
}

impl Text for Bound {
    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto".to_owned(),
            Self::None => "none".to_owned(),
            Self::At(bound) => bound.to_string(),
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::None),
            _ => f64::from_text(text).filter(|x| *x >= 0.0).map(Self::At),
        }
    }
}

impl Text for Vec<bool> {
    fn to_text(&self) -> String {
        if self.is_empty() {
            return "none".to_owned();
        }
        self.iter().map(|compute| if *compute { '1' } else { '0' }).collect()
    }

    fn from_text(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::new());
        }
        let digit = |c| match c {
            '0' => Some(false),
            '1' => Some(true),
            _ => None,
        };
        let mask: Self = text.chars().map(digit).collect::<Option<_>>()?;
        (1..=MAX_STEPS).contains(&mask.len()).then_some(mask)
    }
}

/// An enumeration by the names of its values.
macro_rules! names {
    ($type:ty { $($value:pat => $name:literal => $make:expr),* $(,)? }) => {
        impl Text for $type {
            fn to_text(&self) -> String {
                match self { $($value => $name,)* }.to_owned()
            }

            fn from_text(text: &str) -> Option<Self> {
                match text { $($name => Some($make),)* _ => None }
            }
        }
    };
}

names!(When {
    Self::None => "none" => Self::None,
    Self::Change => "change" => Self::Change,
    Self::Schedule => "schedule" => Self::Schedule,
});
names!(Where { Self::Stack => "stack" => Self::Stack, Self::Model => "model" => Self::Model });
names!(What {
    Self::Hold => "hold" => Self::Hold,
    Self::Taylor => "taylor" => Self::Taylor,
    Self::Newton => "newton" => Self::Newton,
});
names!(Compat {
    Self::None => "none" => Self::None,
    Self::Diffusers => "diffusers" => Self::Diffusers,
});
names!(Option<Dtype> {
    None => "tensor" => None,
    Some(Dtype::F32) => "f32" => Some(Dtype::F32),
    Some(Dtype::F16) => "f16" => Some(Dtype::F16),
    Some(Dtype::Bf16) => "bf16" => Some(Dtype::Bf16),
});

/// Every tensor a block can have.
pub const FILL_ALL: u32 = u32::MAX;

fn fill_to_text(fill: u32) -> String {
    if fill == FILL_ALL {
        return "all".to_owned();
    }
    let tensors = (0..32).filter(|k| fill >> k & 1 == 1).map(|k| k.to_string());
    tensors.collect::<Vec<_>>().join(":")
}

fn fill_from_text(text: &str) -> Option<u32> {
    if text == "all" {
        return Some(FILL_ALL);
    }
    let bit = |k: &str| k.parse().ok().filter(|k| *k < MAX_TENSORS as u32).map(|k: u32| 1 << k);
    text.split(':').try_fold(0, |fill, k| Some(fill | bit(k)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Options> {
        let mut options = Options::preset("none")?;
        options.parse(text)?;
        Ok(options)
    }

    #[test]
    fn a_bare_first_word_is_a_preset_and_the_rest_change_it() {
        let options = parsed("dbcache, threshold=0.12 ,estimator=taylor").expect("legal");
        let preset = Options::preset("dbcache").expect("known");
        let expected = Options { threshold: 0.12, estimator: What::Taylor, ..preset };
        assert_eq!(options, expected);
        assert_eq!(options.format().expect("known"), "dbcache,estimator=taylor,threshold=0.12");
        assert_eq!(parsed("").expect("empty is legal"), Options::preset("none").expect("known"));
    }

    #[test]
    fn errors_name_the_key_the_value_and_what_is_allowed() {
        for (text, expected) in [
            ("fbcache,treshold=1", "no option is named 'treshold', did you mean 'threshold'?"),
            ("fbcache,xyz=1", "no option is named 'xyz'; there are rule, scope"),
            ("fbcash", "no preset is named 'fbcash', did you mean 'fbcache'?; there are none,"),
            ("threshold=0.1,fbcache", "a preset stands first"),
            ("threshold=big", "threshold is 'big', allowed is a number above 0"),
            ("threshold=nan", "threshold is 'nan'"),
            ("order=-1", "order is '-1', allowed is 0 to 4"),
            ("mask=1012", "mask is '1012', allowed is up to 256 digits"),
            ("max_error=-1", "max_error is '-1'"),
            ("fill=0:9", "fill is '0:9'"),
            ("share=yes", "share is 'yes', allowed is 0 or 1"),
            ("fbcache,", "'' is not key=value"),
        ] {
            let error = parsed(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_failed_parse_changes_nothing() {
        let mut options = parsed("fbcache,threshold=0.3").expect("legal");
        let before = options.clone();
        assert!(options.parse("dbcache,order=2,nonsense=1").is_err());
        assert_eq!(options, before);
    }

    fn limit() -> impl Strategy<Value = Limit> {
        prop_oneof![Just(Limit::Auto), Just(Limit::None), (0..u32::MAX - 1).prop_map(Limit::At)]
    }

    fn bound() -> impl Strategy<Value = Bound> {
        prop_oneof![Just(Bound::Auto), Just(Bound::None), (0.0f64..1e300).prop_map(Bound::At)]
    }

    prop_compose! {
        fn options()(
            preset in 0..preset::PRESETS.len(),
            estimator in prop_oneof![Just(What::Hold), Just(What::Taylor), Just(What::Newton)],
            dtype in prop_oneof![Just(None), Just(Some(Dtype::F16)), Just(Some(Dtype::Bf16))],
            switches in any::<[bool; 4]>(),
            numbers in any::<[u32; 4]>(),
            fill in prop_oneof![Just(FILL_ALL), 1u32..16],
            limits in [limit(), limit(), limit(), limit(), limit()],
            bounds in [bound(), bound(), bound()],
            threshold in 1e-300f64..1e300,
            mask in prop::collection::vec(any::<bool>(), 0..=MAX_STEPS),
        ) -> Options {
            let (preset, make) = preset::PRESETS[preset];
            Options {
                estimator, threshold, mask, fill,
                history_dtype: dtype,
                on_residual: switches[0], lagged: switches[1], share: switches[2],
                compat: if switches[3] { Compat::Diffusers } else { Compat::None },
                front_blocks: numbers[0], back_blocks: numbers[1],
                order: numbers[2] % (MAX_ORDER + 1), warmup_interval: numbers[3].max(1),
                warmup_steps: limits[0], last_steps: limits[1], max_consecutive: limits[2],
                max_total: limits[3], max_age: limits[4],
                max_error: bounds[0], max_run_error: bounds[1], max_gain: bounds[2],
                ..make(preset)
            }
        }
    }

    proptest! {
        #[test]
        fn what_format_prints_parse_reads_back(options in options(), start in options()) {
            let mut read = start;
            read.parse(&options.format().expect("a known preset")).expect("canonical text");
            prop_assert_eq!(read, options);
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC*") {
            let _ = parsed(&text);
        }
    }
}
