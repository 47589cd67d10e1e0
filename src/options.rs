//! What a user may choose, as text and as values: one table of keys serves parsing, printing and
//! the list in error messages.
use crate::error::{Result, bail};
use crate::ops::Dtype;
use crate::preset;
use crate::rule::MAX_MARKS;
use crate::scope::Kind;

pub const MAX_STEPS: usize = 256;
pub const MAX_ORDER: u32 = 4;
pub const MAX_TENSORS: usize = crate::rows::MAX_TENSORS;

/// When: the rule that decides, beside the limits and the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing is ever skipped.
    None,
    /// The change of the front residual.
    Change,
    /// The schedule alone: intervals, windows, the mask.
    Schedule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Stack,
    Block,
    Layers,
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Hold,
    Taylor,
    Newton,
    Hermite,
    Linear,
    FoCa,
}

/// Whose behaviour, quirks included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compat {
    None,
    Diffusers,
    /// The method's original code.
    Paper,
}

/// Two numbers: a window of timesteps, or a weight at the start and at the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span(pub f64, pub f64);

/// What is chosen for a kind of layer; `None` is as for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OfKind {
    pub every: Option<u32>,
    pub window: Option<Span>,
    /// Only so many layers, the first that the engine asks about.
    pub layers: Option<u32>,
}

/// FasterCache's unconditional branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OfGuidance {
    /// Compute the branch every n-th step; `None` or 1 always does.
    pub every: Option<u32>,
    pub window: Option<Span>,
    /// Factors on the low and high frequencies, and where they work.
    pub low: f64,
    pub low_window: Option<Span>,
    pub high: f64,
    pub high_window: Option<Span>,
    /// Skipped steps in a row over which the factors grow.
    pub max_growth: Limit,
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
    /// Compute every n-th step.
    pub every: Option<u32>,
    /// Skip only in between these fractions of the timestep at pure noise.
    pub window: Option<Span>,
    /// In the order of [`Kind::ALL`].
    pub kinds: [OfKind; Kind::ALL.len()],
    /// Timesteps, as such fractions, whose MLP outputs the `mlp_skips` steps after them reuse.
    pub mlp_at: Vec<f64>,
    pub mlp_skips: u32,
    /// Layers are skipped only where guidance leaves the unconditional branch out.
    pub cond_only: bool,
    /// Of `estimator=linear`, at the start and at the end of the run.
    pub weight: Span,
    /// Of `estimator=hermite`.
    pub scale: f64,
    pub guidance: OfGuidance,
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

/// A key for some other place.
macro_rules! place {
    ($name:literal, $options:ident => $place:expr, $allowed:expr, $legal:expr) => {
        Key {
            name: $name,
            get: |$options| $place.to_text(),
            set: |$options, text| Text::from_text(text).filter($legal).map(|value| $place = value),
            allowed: $allowed,
        }
    };
}

/// A key for a place that may be empty, which is written as a word.
macro_rules! optional {
    ($name:literal, $word:literal, $options:ident => $place:expr, $allowed:expr, $legal:expr) => {
        Key {
            name: $name,
            get: |$options| $place.as_ref().map_or($word.to_owned(), Text::to_text),
            set: |$options, text| {
                let value = match text {
                    $word => Some(None),
                    _ => Text::from_text(text).filter($legal).map(Some),
                };
                value.map(|value| $place = value)
            },
            allowed: $allowed,
        }
    };
}

fn above_0(n: &u32) -> bool {
    *n > 0
}

fn rises(window: &Span) -> bool {
    window.0 < window.1
}

const EVERY: &str = "a whole number above 0, or 'none'";
const EVERY_KIND: &str = "a whole number above 0, or 'auto', which is what 'every' says";
const WINDOW: &str = "two fractions of the timestep at noise, low:high with low < high, or 'none'";
const WINDOW_KIND: &str = "low:high with low < high, or 'auto', which is what 'window' says";
const LAYERS: &str = "a whole number above 0, or 'all'";
const FACTOR: &str = "a number";
const LIMIT: &str = "a whole number, 'auto' or 'none'";
const BOUND: &str = "a number of 0 or more, 'auto' or 'none'";
const SWITCH: &str = "0 or 1";

const KEYS: &[Key] = &[
    key!(rule, "none, change or schedule"),
    key!(scope, "stack, block, layers or model"),
    key!(estimator, "hold, taylor, newton, hermite, linear or foca"),
    key!(threshold, "a number above 0", |x| *x > 0.0),
    key!(front_blocks, "a whole number"),
    key!(back_blocks, "a whole number"),
    key!(order, "0 to 4", |n| *n <= MAX_ORDER),
    key!(on_residual, SWITCH),
    optional!("every", "none", o => o.every, EVERY, above_0),
    optional!("window", "none", o => o.window, WINDOW, rises),
    optional!("spatial.every", "auto", o => o.kinds[0].every, EVERY_KIND, above_0),
    optional!("spatial.window", "auto", o => o.kinds[0].window, WINDOW_KIND, rises),
    optional!("spatial.layers", "all", o => o.kinds[0].layers, LAYERS, above_0),
    optional!("temporal.every", "auto", o => o.kinds[1].every, EVERY_KIND, above_0),
    optional!("temporal.window", "auto", o => o.kinds[1].window, WINDOW_KIND, rises),
    optional!("temporal.layers", "all", o => o.kinds[1].layers, LAYERS, above_0),
    optional!("cross.every", "auto", o => o.kinds[2].every, EVERY_KIND, above_0),
    optional!("cross.window", "auto", o => o.kinds[2].window, WINDOW_KIND, rises),
    optional!("cross.layers", "all", o => o.kinds[2].layers, LAYERS, above_0),
    optional!("mlp.every", "auto", o => o.kinds[3].every, EVERY_KIND, above_0),
    optional!("mlp.window", "auto", o => o.kinds[3].window, WINDOW_KIND, rises),
    optional!("mlp.layers", "all", o => o.kinds[3].layers, LAYERS, above_0),
    place!("mlp.at", o => o.mlp_at, "up to 16 fractions above 0 like 0.72:0.64, or 'none'", |_| true),
    place!("mlp.skips", o => o.mlp_skips, "a whole number above 0", above_0),
    key!(cond_only, SWITCH),
    optional!("guidance.every", "none", o => o.guidance.every, EVERY, above_0),
    optional!("guidance.window", "none", o => o.guidance.window, WINDOW, rises),
    place!("guidance.low", o => o.guidance.low, FACTOR, |_| true),
    optional!("guidance.low_window", "none", o => o.guidance.low_window, WINDOW, rises),
    place!("guidance.high", o => o.guidance.high, FACTOR, |_| true),
    optional!("guidance.high_window", "none", o => o.guidance.high_window, WINDOW, rises),
    place!("guidance.max_growth", o => o.guidance.max_growth, LIMIT, |_| true),
    Key {
        name: "weight",
        get: |options| match options.weight {
            Span(start, end) if start == end => start.to_text(),
            ramp => ramp.to_text(),
        },
        set: |options, text| {
            let constant = || f64::from_text(text).map(|weight| Span(weight, weight));
            Span::from_text(text).or_else(constant).map(|weight| options.weight = weight)
        },
        allowed: "a number, or one for the run's first step and one for its last like 0.2:0.8",
    },
    key!(scale, "a number above 0", |x| *x > 0.0),
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
    key!(compat, "none, diffusers or paper"),
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

impl Text for Span {
    fn to_text(&self) -> String {
        format!("{}:{}", self.0, self.1)
    }

    fn from_text(text: &str) -> Option<Self> {
        let (low, high) = text.split_once(':')?;
        Some(Self(f64::from_text(low)?, f64::from_text(high)?))
    }
}

impl Text for Vec<f64> {
    fn to_text(&self) -> String {
        if self.is_empty() {
            return "none".to_owned();
        }
        self.iter().map(f64::to_string).collect::<Vec<_>>().join(":")
    }

    fn from_text(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::new());
        }
        let mark = |text: &str| f64::from_text(text).filter(|mark| *mark > 0.0);
        let marks: Self = text.split(':').map(mark).collect::<Option<_>>()?;
        (marks.len() <= MAX_MARKS).then_some(marks)
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
names!(Where {
    Self::Stack => "stack" => Self::Stack,
    Self::Block => "block" => Self::Block,
    Self::Layers => "layers" => Self::Layers,
    Self::Model => "model" => Self::Model,
});
names!(What {
    Self::Hold => "hold" => Self::Hold,
    Self::Taylor => "taylor" => Self::Taylor,
    Self::Newton => "newton" => Self::Newton,
    Self::Hermite => "hermite" => Self::Hermite,
    Self::Linear => "linear" => Self::Linear,
    Self::FoCa => "foca" => Self::FoCa,
});
names!(Compat {
    Self::None => "none" => Self::None,
    Self::Diffusers => "diffusers" => Self::Diffusers,
    Self::Paper => "paper" => Self::Paper,
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
            estimator in prop_oneof![Just(What::Hold), Just(What::Taylor), Just(What::Hermite), Just(What::Linear)],
            dtype in prop_oneof![Just(None), Just(Some(Dtype::F16)), Just(Some(Dtype::Bf16))],
            switches in any::<[bool; 4]>(),
            numbers in any::<[u32; 4]>(),
            fill in prop_oneof![Just(FILL_ALL), 1u32..16],
            limits in [limit(), limit(), limit(), limit(), limit()],
            bounds in [bound(), bound(), bound()],
            threshold in 1e-300f64..1e300,
            every in prop::option::of(1u32..),
            spans in prop::collection::vec(prop::option::of((-2f64..0.4, 0.5f64..2.0)), 7),
            layers in prop::array::uniform4(prop::option::of(1u32..9)),
            mlp_at in prop::collection::vec(1e-3f64..1.0, 0..=MAX_MARKS),
            weight in (-2f64..2.0, -2f64..2.0),
            growth in limit(),
            mask in prop::collection::vec(any::<bool>(), 0..=MAX_STEPS),
        ) -> Options {
            let (preset, make) = preset::PRESETS[preset];
            let span = |k: usize| spans[k].map(|(low, high)| Span(low, high));
            let of_kind = |k: usize| OfKind { every, window: span(k), layers: layers[k] };
            Options {
                every, mlp_at,
                window: span(4),
                kinds: std::array::from_fn(of_kind),
                mlp_skips: numbers[2].max(1), cond_only: switches[1],
                weight: if switches[0] { Span(weight.0, weight.0) } else { Span(weight.0, weight.1) },
                scale: threshold,
                guidance: OfGuidance {
                    every, window: span(5), low: weight.0, low_window: span(6), high: weight.1,
                    high_window: span(0), max_growth: growth,
                },
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
