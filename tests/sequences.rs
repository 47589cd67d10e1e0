//! Whatever an engine calls, in whatever order: as long as it obeys the answers, what comes out of
//! a pass is either computed in full, or what went into the skipped span plus the residual of one
//! earlier computed pass. Nothing crashes or hangs, and only the answer SKIP writes a tensor.
mod support;

use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use support::*;

/// A method, and what the test must know of it.
#[derive(Clone, Copy, Debug)]
struct Method {
    options: &'static str,
    front: usize,
    back: usize,
    on_residual: bool,
    /// Two values may be extrapolated.
    linear: bool,
    /// Tensor 1 is restored, too.
    fills_text: bool,
}

const FIRST: Method = Method {
    options: "fbcache,threshold=0.2",
    front: 1,
    back: 0,
    on_residual: true,
    linear: false,
    fills_text: true,
};

const METHODS: &[Method] = &[
    FIRST,
    Method { options: "fbcache,threshold=0.2,NO_RAILS", ..FIRST },
    Method { options: "fbcache,threshold=0.2,NO_RAILS,back_blocks=1", back: 1, ..FIRST },
    Method { options: "dbcache,front_blocks=2,NO_RAILS,back_blocks=1", front: 2, back: 1, ..FIRST },
    Method { options: "fbcache,compat=diffusers,threshold=0.2", ..FIRST },
    Method { options: "fbcache,threshold=0.2,NO_RAILS,lagged=1", ..FIRST },
    Method { options: "fbcache,threshold=0.2,NO_RAILS,share=1", ..FIRST },
    Method { options: "fbcache,threshold=0.2,NO_RAILS,fill=0", fills_text: false, ..FIRST },
    Method { options: "fbcache,threshold=0.2,NO_RAILS,on_residual=0", on_residual: false, ..FIRST },
    Method { options: "fbcache,threshold=0.2,NO_RAILS,estimator=taylor", linear: true, ..FIRST },
    Method { options: "mask,mask=100100010000000000", front: 0, ..FIRST },
    Method { options: "mask,mask=11010000,estimator=newton", front: 0, linear: true, ..FIRST },
    Method { options: "none", ..FIRST },
];

#[derive(Clone, Debug)]
struct Plan {
    method: Method,
    n_blocks: usize,
    dtype: Dtype,
    n_branches: u32,
    max_stacked: u32,
    measure: u32,
    keeps_input: bool,
    /// Only the boundary blocks are asked about and reported.
    boundaries: bool,
    /// Tensors have numbers, and are reported in the other order.
    ids: bool,
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
enum Call {
    BeginRun {
        n_steps: u32,
        shapes: bool,
    },
    EndRun,
    Trim,
    Look,
    /// The allocator gives nothing more, or does again.
    Starve(bool),
    /// Outside a pass.
    Stray(Vec<Step>),
    /// A pass of an engine that obeys.
    Pass(PassPlan),
    /// A pass of one that does not.
    Wild(PassPlan, Vec<Step>),
}

#[derive(Clone, Debug)]
struct PassPlan {
    /// Steps after the last one; 0 repeats it.
    gap: u32,
    members: Vec<u32>,
    flags: u32,
    scale: f32,
    peeks: bool,
    faults: Vec<(Index, Fault)>,
    /// Never ended.
    abandoned: bool,
}

/// What an engine may do wrong and still obey every answer.
#[derive(Clone, Copy, Debug)]
enum Fault {
    AsksWith(Decoy),
    ReportsWith(Decoy),
    NeverReports,
    NeverAsks,
    AsksTwice,
    AsksBeyond,
    ReportsBeyond,
    /// A block that was answered SKIP, and was not run.
    ReportsSkipped,
    Decides(dc_action_t),
    Peeks,
    Looks,
}

/// Calls without a plan.
#[derive(Clone, Copy, Debug)]
enum Step {
    Before(u32),
    BeforeWith(u32, Decoy),
    After(u32),
    AfterWith(u32, Decoy),
    Decide(dc_action_t),
    Peek(u32),
    EndPass,
    /// The tensors change.
    Work,
}

/// Tensors that are not those of the model.
#[derive(Clone, Copy, Debug)]
enum Decoy {
    None,
    TooMany,
    Null,
    UnknownDtype,
    OtherDtype,
    Longer,
    Negative,
    Huge,
    NoDims,
    ManyDims,
    Flagged,
    Reserved,
    OneId,
}

/// Unique extents, so that no history can ever fit them.
fn decoy(kind: Decoy, x: &[Tensor], serial: usize) -> (Vec<Tensor>, Vec<dc_tensor_t>) {
    let longer = |dtype| Tensor::new(dtype, &[40 + serial, 3]).with_id(x[0].id);
    let owned = match kind {
        Decoy::Longer => vec![longer(x[0].dtype), x[1].clone()],
        Decoy::OtherDtype => {
            let other = if x[0].dtype == Dtype::F32 { Dtype::Bf16 } else { Dtype::F32 };
            vec![longer(other), x[1].clone()]
        }
        _ => x.to_vec(),
    };
    let mut lent = lent(&owned);
    match kind {
        Decoy::None => lent.clear(),
        Decoy::TooMany => lent = vec![lent[0]; DC_MAX_TENSORS + 1],
        Decoy::Null => lent[0].data = std::ptr::null_mut(),
        Decoy::UnknownDtype => lent[0].dtype = 77,
        Decoy::Negative => lent[0].shape[0] = -1,
        Decoy::Huge => lent[0].shape[..2].fill(i64::MAX),
        Decoy::NoDims => lent[0].ndim = 0,
        Decoy::ManyDims => lent[0].ndim = 7,
        Decoy::Flagged => lent[0].flags = 0x80,
        Decoy::Reserved => lent[0].reserved = 1,
        Decoy::OneId => lent.iter_mut().for_each(|x| x.id = 5),
        Decoy::Longer | Decoy::OtherDtype => {}
    }
    (owned, lent)
}

/// What a computed pass left of one branch.
#[derive(Clone)]
struct Kept {
    step: u32,
    /// Residual or output, per tensor.
    value: Vec<Vec<f32>>,
}

fn rounded(dtype: Dtype, values: impl Iterator<Item = f32>) -> Vec<f32> {
    Tensor::of(dtype, &values.collect::<Vec<_>>()).values()
}

/// Bit for bit, but any NaN is as good as another.
fn same(a: &[f32], b: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    a.len() == b.len() && a.iter().zip(b).all(same)
}

fn values(x: &[Tensor]) -> Vec<Vec<f32>> {
    x.iter().map(Tensor::values).collect()
}

/// An engine, and what is known of the cache it uses.
struct Engine<'a> {
    plan: &'a Plan,
    toy: Toy,
    cache: Cache,
    ledger: &'a Ledger,
    /// What may be reused, by branch.
    kept: Vec<Vec<Kept>>,
    /// Number of steps of the open run.
    run: Option<u32>,
    begin_run_failed: bool,
    /// An allocation may have failed in this run.
    starved: bool,
    /// Branches whose last passes were not as they should be.
    misled: Vec<bool>,
    last: Vec<Option<u32>>,
    step: u32,
    /// A pass was begun and not ended.
    open: bool,
    ended: u64,
    serial: usize,
    /// Every tensor ever shown lives to the end: an engine that keeps its input must keep it.
    shown: Vec<Tensor>,
}

/// One pass as it goes.
struct Walk {
    members: Vec<u32>,
    step: u32,
    x: Vec<Tensor>,
    /// What the cache was shown where the span may begin and end.
    entries: Vec<Vec<Vec<f32>>>,
    exits: Vec<Vec<Vec<f32>>>,
    /// The answer at the start of the span.
    answer: Option<dc_action_t>,
    /// What peek or decide said it would be.
    promised: Option<dc_action_t>,
    /// Nothing was done wrong.
    clean: bool,
    reported_skipped: bool,
}

impl<'a> Engine<'a> {
    fn new(plan: &'a Plan, ledger: &'a Ledger) -> Self {
        let keeps_input = plan.keeps_input && plan.method.front == 1;
        let toy = Toy { keeps_input, ..Toy::new(&GAINS[..plan.n_blocks]) };
        let options = plan.method.options.replace("NO_RAILS", NO_RAILS);
        let setup = Setup::new(plan.n_blocks, &options);
        let setup = setup.branches(plan.n_branches, plan.max_stacked).with(|engine| {
            ledger.serve(engine);
            engine.measure = plan.measure;
            engine.flags = u32::from(keeps_input) * DC_ENGINE_KEEPS_INPUT;
        });
        Self {
            plan,
            toy,
            cache: setup.create(),
            ledger,
            kept: vec![Vec::new(); plan.n_branches as usize],
            run: None,
            begin_run_failed: false,
            starved: false,
            misled: vec![false; plan.n_branches as usize],
            last: vec![None; plan.n_branches as usize],
            step: 0,
            open: false,
            ended: 0,
            serial: 0,
            shown: Vec::new(),
        }
    }

    fn span(&self) -> std::ops::Range<usize> {
        self.plan.method.front..self.plan.n_blocks - self.plan.method.back
    }

    /// The model's tensors, unlike those of any other pass.
    fn input(&mut self, stacked: usize, scale: f32) -> Vec<Tensor> {
        self.serial += 1;
        let stream = |seed: u64, shape: [usize; 2], id| {
            let x =
                Tensor::new(self.plan.dtype, &shape).with_id(if self.plan.ids { id } else { 0 });
            let shift = 0.002 * self.serial as f32;
            let values = noise(seed, x.len()).into_iter().map(|a| (a + shift) * scale);
            x.set(&values.collect::<Vec<_>>());
            x
        };
        let x = vec![stream(1, [2 * stacked, 5], 11), stream(2, [stacked, 3], 22)];
        self.shown.extend(x.iter().cloned());
        x
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::BeginRun { n_steps, shapes } => self.begin_run(*n_steps, *shapes),
            Call::EndRun => {
                ok(self.cache.end_run());
                (self.run, self.open) = (None, false);
            }
            Call::Trim => {
                let status = self.cache.trim();
                assert_eq!(status == DC_OK, !self.open);
                if status == DC_OK {
                    assert_eq!(self.ledger.books().held, 0);
                    self.kept.iter_mut().for_each(Vec::clear);
                }
            }
            Call::Look => self.look(),
            Call::Starve(starve) => {
                let mut books = self.ledger.books();
                books.fails_from = starve.then_some(books.calls);
                self.starved |= *starve;
            }
            Call::Stray(steps) => self.stray(steps),
            Call::Pass(pass) => self.pass(pass),
            Call::Wild(pass, steps) => self.wild(pass, steps),
        }
    }

    fn begin_run(&mut self, n_steps: u32, shapes: bool) {
        let tensors = self.input(1, 1.0);
        let status = match shapes {
            true => self.cache.begin_run_on(n_steps, &[(EACH, tensors)]),
            false => self.cache.begin_run(n_steps),
        };
        let starving = self.ledger.books().fails_from.is_some();
        assert!(
            status == DC_OK || status == DC_ERR_MEMORY && starving,
            "{status} {}",
            last_error()
        );
        self.begin_run_failed = status != DC_OK;
        self.starved = starving;
        self.kept.iter_mut().for_each(Vec::clear);
        self.last.fill(None);
        self.misled.fill(false);
        (self.run, self.open, self.step, self.ended) = (Some(n_steps), false, 0, 0);
    }

    fn look(&self) {
        let (stats, trace) = (self.cache.stats(), self.cache.trace());
        assert_eq!(stats.passes, self.ended);
        assert!(stats.passes_skipped <= stats.passes && stats.discarded <= stats.errors);
        let blocks = stats.passes * self.plan.n_blocks as u64;
        assert_eq!(stats.blocks_computed + stats.blocks_skipped, blocks);
        // What is seen is the state after the last pass.
        assert!(self.open || stats.bytes_held == self.ledger.books().held);
        assert!(!trace.reasons().contains(['-', '?', 'K', 'V']), "{}", trace.reasons());
    }

    /// Nothing is open, so nothing is done.
    fn stray(&mut self, steps: &[Step]) {
        if self.open {
            return;
        }
        let x = self.input(1, 1.0);
        let shown = bytes(&x);
        for step in steps {
            match step {
                Step::Before(block) => assert_eq!(self.cache.before(*block, &x), DC_COMPUTE),
                Step::BeforeWith(block, kind) => {
                    assert_eq!(self.before_decoy(*block, *kind, &x), DC_COMPUTE);
                }
                Step::After(block) => self.cache.after(*block, &x),
                Step::AfterWith(block, kind) => self.after_decoy(*block, *kind, &x),
                Step::Decide(wish) => assert_eq!(self.cache.decide(*wish), DC_COMPUTE),
                Step::Peek(block) => assert_eq!(self.cache.peek(None, *block), DC_COMPUTE),
                Step::EndPass => assert_eq!(self.cache.end_pass(), DC_ERR_STATE),
                Step::Work => {}
            }
        }
        assert_eq!(bytes(&x), shown);
    }

    fn before_decoy(&mut self, block: u32, kind: Decoy, x: &[Tensor]) -> dc_action_t {
        self.serial += 1;
        let (owned, lent) = decoy(kind, x, self.serial);
        self.shown.extend(owned);
        // What is not memory says so, or lives on in `shown`.
        unsafe { self.cache.before_raw(block, &lent, None) }
    }

    fn after_decoy(&mut self, block: u32, kind: Decoy, x: &[Tensor]) {
        self.serial += 1;
        let (owned, lent) = decoy(kind, x, self.serial);
        self.shown.extend(owned);
        // As above.
        unsafe { self.cache.after_raw(block, &lent) }
    }

    // ---- one pass ----

    /// Why there is no such pass in this run.
    fn refusal(&self, pass: &dc_pass_t, members: &[u32]) -> Option<dc_status_t> {
        let Some(n_steps) = self.run else {
            return Some(DC_ERR_STATE);
        };
        let twice = (1..members.len()).any(|k| members[..k].contains(&members[k]));
        let unknown = members.iter().any(|branch| *branch >= self.plan.n_branches);
        let stacked = members.len() as u32 > self.plan.max_stacked;
        let beyond = n_steps != 0 && pass.step >= n_steps;
        if twice || unknown || stacked || beyond {
            return Some(DC_ERR_ARG);
        }
        let repeated = members.iter().any(|b| self.last[*b as usize] >= Some(pass.step));
        repeated.then_some(DC_ERR_STATE)
    }

    fn begin(&mut self, plan: &PassPlan) -> (dc_status_t, Walk) {
        self.step += plan.gap;
        let members = plan.members.clone();
        let pass = flagged(self.step, &members, plan.flags);
        let refusal = self.refusal(&pass, &members);
        // A promise for a step further ahead counts on the steps between.
        let last = |branch: &u32| self.last.get(*branch as usize).copied().flatten();
        let next = members.iter().map(|b| last(b).map_or(0, |step| step + 1)).max();
        let peeked = self.cache.peek(Some(&pass), self.plan.method.front as u32);
        let peeked = Some(peeked).filter(|_| plan.peeks && next == Some(self.step));

        let status = self.cache.begin_pass(&pass);
        let expected = match (refusal, self.begin_run_failed, self.open) {
            (Some(refusal), ..) => refusal,
            (None, true, _) => DC_ERR_MEMORY,
            // It cancels another one.
            (None, false, true) => DC_ERR_STATE,
            (None, false, false) => DC_OK,
        };
        assert_eq!(status, expected, "{}", last_error());
        if refusal.is_none() {
            members.iter().for_each(|branch| self.last[*branch as usize] = Some(pass.step));
        }
        if status == DC_OK && plan.flags & DC_PASS_FORGET != 0 {
            members.iter().for_each(|branch| self.kept[*branch as usize].clear());
        }
        self.open = true;
        let x = self.input(members.len(), plan.scale);
        let promised = peeked.filter(|action| *action != DC_UNDECIDED && status == DC_OK);
        // An output is kept as it is, wherever the span was entered: less nothing.
        let nothing = x.iter().map(|x| vec![0.0; x.len()]).collect();
        let walk = Walk {
            members,
            step: self.step,
            x,
            entries: if self.plan.method.on_residual { Vec::new() } else { vec![nothing] },
            exits: Vec::new(),
            answer: None,
            clean: true,
            reported_skipped: false,
            promised,
        };
        (status, walk)
    }

    fn pass(&mut self, plan: &PassPlan) {
        let before = self.last.clone();
        let (begun, mut walk) = self.begin(plan);
        for block in 0..self.plan.n_blocks {
            let faults = plan.faults.iter().filter(|(at, _)| at.index(self.plan.n_blocks) == block);
            let faults: Vec<_> = faults.map(|(_, fault)| *fault).collect();
            self.block(&mut walk, block, &faults, begun);
        }
        if walk.answer == Some(DC_COMPUTE) || walk.answer.is_none() {
            self.keep(&walk);
        }
        if plan.abandoned {
            self.mislead(&walk);
            return;
        }
        let status = self.end(&walk, &before);
        self.judge(status, begun, &walk);
        if status == DC_ERR_DISCARD {
            // To be done again under the same number.
            let (flags, faults) = (DC_PASS_COMPUTE, Vec::new());
            self.pass(&PassPlan { gap: 0, flags, faults, abandoned: false, ..plan.clone() });
        }
    }

    /// May a pass that went like this end so?
    fn judge(&mut self, status: dc_status_t, begun: dc_status_t, walk: &Walk) {
        let misled = |branch: &u32| self.misled.get(*branch as usize) == Some(&true);
        let misled = walk.members.iter().any(misled);
        assert_eq!(status == DC_ERR_DISCARD, walk.reported_skipped, "{}", last_error());
        match status {
            DC_ERR_DISCARD => {}
            _ if begun != DC_OK => assert_eq!(status, begun, "{}", last_error()),
            DC_OK => {
                let promised = walk.promised.filter(|_| walk.clean);
                assert!(promised.is_none_or(|promised| walk.answer == Some(promised)));
                let branches = walk.members.iter().map(|branch| *branch as usize);
                branches.for_each(|branch| self.misled[branch] = false);
            }
            DC_ERR_MEMORY => assert!(self.starved),
            _ if !walk.clean => {}
            // The branch starts again.
            DC_ERR_SHAPE | DC_ERR_STATE if misled => assert_eq!(walk.answer, Some(DC_COMPUTE)),
            _ => panic!("{}", last_error()),
        }
        assert!(
            ![DC_ERR_INTERNAL, DC_ERR_HANDLE, DC_ERR_BUSY].contains(&status),
            "{}",
            last_error()
        );
        if !walk.clean {
            self.mislead(walk);
        }
    }

    /// What was shown in this pass may not be what is shown in the next.
    fn mislead(&mut self, walk: &Walk) {
        for branch in &walk.members {
            self.misled.get_mut(*branch as usize).into_iter().for_each(|misled| *misled = true);
        }
    }

    fn end(&mut self, walk: &Walk, before: &[Option<u32>]) -> dc_status_t {
        let status = self.cache.end_pass();
        if std::mem::take(&mut self.open) {
            self.ended += 1;
        }
        if status == DC_ERR_DISCARD {
            self.last.copy_from_slice(before);
        }
        if let (DC_OK, Some(action)) = (status, walk.answer) {
            let trace = self.cache.trace();
            let own = trace.0.iter().rev().take(walk.members.len());
            let told = own.filter(|record| record.step == walk.step && record.action == action);
            let method = self.plan.method.options;
            assert!(method == "none" || told.count() == walk.members.len(), "the trace tells");
        }
        status
    }

    fn block(&mut self, walk: &mut Walk, block: usize, faults: &[Fault], begun: dc_status_t) {
        let (span, number) = (self.span(), block as u32);
        let inside = span.contains(&block);
        let shown = bytes(&walk.x);
        let has = |wanted: fn(&Fault) -> bool| faults.iter().any(wanted);
        for fault in faults {
            self.fault_before(walk, *fault, block);
        }
        assert_eq!(bytes(&walk.x), shown, "nothing but SKIP writes");

        let boundary = [0, span.start, span.end, self.plan.n_blocks - 1].contains(&block);
        let asked = (boundary || !self.plan.boundaries) && !has(|f| matches!(f, Fault::NeverAsks));
        if asked && block >= span.end && walk.answer != Some(DC_SKIP) {
            // The first back block shows what left the span, if nothing did before.
            walk.exits.push(values(&walk.x));
        }
        let action = if asked {
            self.ask(walk, block, faults, begun)
        } else if inside {
            walk.answer.unwrap_or(DC_COMPUTE)
        } else {
            DC_COMPUTE
        };
        if has(|f| matches!(f, Fault::AsksTwice)) && asked {
            let shown = bytes(&walk.x);
            assert_eq!(self.cache.before(number, &walk.x), action);
            assert_eq!(bytes(&walk.x), shown);
        }
        if action == DC_SKIP {
            if has(|f| matches!(f, Fault::ReportsSkipped)) {
                walk.reported_skipped = true;
                self.cache.after(number, &walk.x);
            }
            return;
        }
        if block == 0 && self.toy.keeps_input {
            // The input stands where it was shown.
            walk.x = walk.x.iter().map(Tensor::copy).collect();
            self.shown.extend(walk.x.iter().cloned());
        }
        self.toy.block(block, &walk.x);
        self.report(walk, block, faults, boundary || !self.plan.boundaries);
    }

    fn fault_before(&mut self, walk: &mut Walk, fault: Fault, block: usize) {
        let n = self.plan.n_blocks as u32;
        match fault {
            Fault::AsksBeyond => {
                walk.clean = false;
                let _ = self.cache.before(n + block as u32, &walk.x);
            }
            Fault::ReportsBeyond => {
                walk.clean = false;
                self.cache.after(n + block as u32, &walk.x);
            }
            Fault::Decides(wish) => {
                walk.clean &= wish <= DC_UNDECIDED;
                let action = self.cache.decide(wish);
                assert!(
                    walk.answer.is_none_or(|answer| action == answer),
                    "nothing changes any more"
                );
                walk.promised = Some(action).filter(|action| *action != DC_UNDECIDED);
            }
            Fault::Peeks => {
                let action = self.cache.peek(None, self.plan.method.front as u32);
                if let Some(answer) = walk.answer {
                    assert_eq!(action, answer);
                } else if action != DC_UNDECIDED {
                    walk.promised = Some(action);
                }
            }
            Fault::Looks => self.look(),
            Fault::AsksWith(_) | Fault::ReportsWith(_) | Fault::NeverReports => walk.clean = false,
            Fault::NeverAsks | Fault::AsksTwice | Fault::ReportsSkipped => walk.clean = false,
        }
    }

    /// Asks about a block and checks the answer, and what it did.
    fn ask(
        &mut self,
        walk: &mut Walk,
        block: usize,
        faults: &[Fault],
        begun: dc_status_t,
    ) -> dc_action_t {
        let (span, number) = (self.span(), block as u32);
        let shown = values(&walk.x);
        let with = faults.iter().find_map(|fault| match fault {
            Fault::AsksWith(kind) => Some(*kind),
            _ => None,
        });
        let action = match with {
            Some(kind) => self.before_decoy(number, kind, &walk.x),
            None => self.cache.before(number, &walk.x),
        };
        if !span.contains(&block) {
            assert_eq!(action, DC_COMPUTE, "front and back always run");
        } else if let Some(answer) = walk.answer {
            assert_eq!(action, answer, "a span is left out as a whole");
        } else {
            if with.is_none() && self.plan.method.on_residual {
                walk.entries.push(shown.clone());
            }
            if with.is_some() || begun != DC_OK {
                assert_eq!(action, DC_COMPUTE, "{with:?} {begun}");
            }
            walk.answer = Some(action);
            if action == DC_SKIP {
                self.check_skip(walk, &shown);
                return action;
            }
        }
        let unchanged = values(&walk.x).iter().zip(&shown).all(|(a, b)| same(a, b));
        assert!(unchanged, "nothing but SKIP writes");
        action
    }

    fn report(&mut self, walk: &mut Walk, block: usize, faults: &[Fault], reports: bool) {
        let number = block as u32;
        let shown = bytes(&walk.x);
        let with = faults.iter().find_map(|fault| match fault {
            Fault::ReportsWith(kind) => Some(*kind),
            _ => None,
        });
        if let Some(kind) = with {
            self.after_decoy(number, kind, &walk.x);
        } else if reports && !faults.iter().any(|fault| matches!(fault, Fault::NeverReports)) {
            if block + 1 == self.span().end {
                walk.exits.push(values(&walk.x));
            }
            let mut out = walk.x.clone();
            if self.plan.ids {
                out.reverse();
            }
            self.cache.after(number, &out);
        }
        assert_eq!(bytes(&walk.x), shown, "a report writes nothing");
    }

    /// Each branch's rows of tensors that hold `stacked` of them.
    fn rows(values: &[Vec<f32>], stacked: usize, row: usize) -> Vec<Vec<f32>> {
        let rows = |x: &Vec<f32>| x.chunks(x.len() / stacked).nth(row).unwrap_or_default().to_vec();
        values.iter().map(rows).collect()
    }

    /// What this pass may have left behind: wherever it was said that the span begins and ends.
    fn keep(&mut self, walk: &Walk) {
        let stacked = walk.members.len();
        let pairs =
            walk.entries.iter().flat_map(|entry| walk.exits.iter().map(move |exit| (entry, exit)));
        for (entry, exit) in pairs {
            for (row, branch) in walk.members.iter().enumerate() {
                let Some(kept) = self.kept.get_mut(*branch as usize) else { continue };
                let (x, y) = (Self::rows(entry, stacked, row), Self::rows(exit, stacked, row));
                let difference = |(y, x): (&Vec<f32>, &Vec<f32>)| {
                    rounded(self.plan.dtype, y.iter().zip(x).map(|(y, x)| y - x))
                };
                let value = y.iter().zip(&x).map(difference).collect();
                kept.push(Kept { step: walk.step, value });
            }
        }
    }

    /// The result of the span is in place: for every branch, from one earlier computed pass.
    fn check_skip(&self, walk: &Walk, shown: &[Vec<f32>]) {
        let (stacked, got) = (walk.members.len(), values(&walk.x));
        for (row, branch) in walk.members.iter().enumerate() {
            let (got, input) = (Self::rows(&got, stacked, row), Self::rows(shown, stacked, row));
            let kept = &self.kept[*branch as usize];
            let fits = |terms: &[(f64, &Kept)]| {
                (0..2).all(|tensor| match tensor == 0 || self.plan.method.fills_text {
                    true => same(&got[tensor], &self.estimate(&input[tensor], terms, tensor)),
                    false => same(&got[tensor], &input[tensor]),
                })
            };
            let one = || kept.iter().any(|kept| fits(&[(1.0, kept)]));
            let two = || {
                let pairs = kept.iter().flat_map(|a| kept.iter().map(move |b| (a, b)));
                pairs.filter(|(new, old)| new.step > old.step).any(|(new, old)| {
                    let [new_step, old_step, now] = [new.step, old.step, walk.step].map(f64::from);
                    let c = (now - new_step) / (new_step - old_step);
                    fits(&[(1.0 + c, new), (-c, old)])
                })
            };
            let linear = self.plan.method.linear;
            assert!(one() || linear && two(), "branch {branch}: {got:?} from {input:?}");
        }
    }

    fn estimate(&self, input: &[f32], terms: &[(f64, &Kept)], tensor: usize) -> Vec<f32> {
        let element = |i: usize| {
            let start = self.plan.method.on_residual.then_some(input[i]);
            let sum = terms.iter().fold(start, |sum, (c, kept)| {
                let term = *c as f32 * kept.value[tensor][i];
                Some(sum.map_or(term, |sum| sum + term))
            });
            sum.unwrap_or_default()
        };
        rounded(self.plan.dtype, (0..input.len()).map(element))
    }

    /// Calls at random: nothing is known of this pass, but everything of the next.
    fn wild(&mut self, plan: &PassPlan, steps: &[Step]) {
        let before = self.last.clone();
        let (_, mut walk) = self.begin(plan);
        walk.promised = None;
        let span = self.span();
        for step in steps {
            let x = walk.x.clone();
            match *step {
                Step::Before(block) => {
                    if block as usize >= span.start && self.plan.method.on_residual {
                        walk.entries.push(values(&x));
                    }
                    let _ = self.cache.before(block, &x);
                }
                Step::BeforeWith(block, kind) => drop(self.before_decoy(block, kind, &x)),
                Step::After(block) => {
                    if block as usize + 1 == span.end {
                        walk.exits.push(values(&x));
                    }
                    self.cache.after(block, &x);
                }
                Step::AfterWith(block, kind) => self.after_decoy(block, kind, &x),
                Step::Decide(wish) => drop(self.cache.decide(wish)),
                Step::Peek(block) => drop(self.cache.peek(None, block)),
                Step::EndPass => drop(self.end(&walk, &before)),
                Step::Work => self.toy.block(0, &x),
            }
        }
        self.keep(&walk);
        self.mislead(&walk);
        if !plan.abandoned {
            let _ = self.end(&walk, &before);
        }
    }
}

// ---- plans ----

fn wish() -> impl Strategy<Value = dc_action_t> {
    select(&[DC_COMPUTE, DC_SKIP, DC_SKIP, DC_UNDECIDED, 77][..])
}

fn any_decoy() -> impl Strategy<Value = Decoy> {
    use Decoy::*;
    select(
        &[
            None,
            TooMany,
            Null,
            UnknownDtype,
            OtherDtype,
            Longer,
            Negative,
            Huge,
            NoDims,
            ManyDims,
            Flagged,
            Reserved,
            OneId,
        ][..],
    )
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        1 => any_decoy().prop_map(Fault::AsksWith),
        1 => any_decoy().prop_map(Fault::ReportsWith),
        1 => Just(Fault::NeverReports),
        1 => Just(Fault::NeverAsks),
        1 => Just(Fault::AsksTwice),
        1 => Just(Fault::AsksBeyond),
        1 => Just(Fault::ReportsBeyond),
        2 => Just(Fault::ReportsSkipped),
        3 => wish().prop_map(Fault::Decides),
        2 => Just(Fault::Peeks),
        1 => Just(Fault::Looks),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let block = || prop_oneof![8 => 0u32..6, 1 => Just(6), 1 => Just(u32::MAX)];
    prop_oneof![
        5 => block().prop_map(Step::Before),
        1 => (block(), any_decoy()).prop_map(|(block, decoy)| Step::BeforeWith(block, decoy)),
        5 => block().prop_map(Step::After),
        1 => (block(), any_decoy()).prop_map(|(block, decoy)| Step::AfterWith(block, decoy)),
        1 => wish().prop_map(Step::Decide),
        1 => block().prop_map(Step::Peek),
        1 => Just(Step::EndPass),
        3 => Just(Step::Work),
    ]
}

fn pass(n_branches: u32, max_stacked: u32) -> impl Strategy<Value = PassPlan> {
    let branches: Vec<_> = (0..n_branches).collect();
    let most = max_stacked.min(n_branches) as usize;
    let some = subsequence(branches, 1..=most).prop_shuffle();
    // Now and then a branch too many, or one that is unknown or named twice.
    let wrong = prop::collection::vec(0..n_branches + 1, 1..=max_stacked as usize + 1);
    let members = prop_oneof![20 => some, 1 => wrong];
    let flags = prop_oneof![
        8 => Just(0),
        1 => Just(DC_PASS_COMPUTE),
        1 => Just(DC_PASS_FORGET),
        1 => Just(DC_PASS_LAST),
    ];
    let faults = prop::collection::vec((any::<Index>(), fault()), 1..3);
    (
        select(&[0, 1, 1, 1, 1, 1, 1, 1, 2, 9][..]),
        members,
        flags,
        select(&[1.0, 1.0, 1.0, 1.02, 1.05, 1.5, 0.0, f32::NAN][..]),
        any::<bool>(),
        prop_oneof![3 => Just(Vec::new()), 2 => faults],
        prop::bool::weighted(0.05),
    )
        .prop_map(|(gap, members, flags, scale, peeks, faults, abandoned)| PassPlan {
            gap,
            members,
            flags,
            scale,
            peeks,
            faults,
            abandoned,
        })
}

fn call(n_branches: u32, max_stacked: u32) -> impl Strategy<Value = Call> {
    let pass = move || pass(n_branches, max_stacked);
    let steps = || prop::collection::vec(step(), 0..12);
    prop_oneof![
        40 => pass().prop_map(Call::Pass),
        4 => (pass(), steps()).prop_map(|(pass, steps)| Call::Wild(pass, steps)),
        1 => steps().prop_map(Call::Stray),
        3 => (select(&[0, 0, 0, 40][..]), any::<bool>())
            .prop_map(|(n_steps, shapes)| Call::BeginRun { n_steps, shapes }),
        1 => Just(Call::Trim),
        1 => Just(Call::Look),
        1 => prop_oneof![1 => Just(true), 3 => Just(false)].prop_map(Call::Starve),
        1 => Just(Call::EndRun),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let sizes = (1u32..4, 1u32..3, 4usize..=6);
    sizes.prop_flat_map(|(n_branches, max_stacked, n_blocks)| {
        let calls = prop::collection::vec(call(n_branches, max_stacked), 1..30);
        let begin = select(&[0, 0, 20, 40][..]).prop_flat_map(|n_steps| {
            any::<bool>().prop_map(move |shapes| Call::BeginRun { n_steps, shapes })
        });
        (select(METHODS), select(&DTYPES[..]), 1u32..4, any::<[bool; 3]>(), begin, calls).prop_map(
            move |(method, dtype, measure, switches, begin, calls)| {
                let [keeps_input, boundaries, ids] = switches;
                let calls = std::iter::once(begin).chain(calls).collect();
                Plan {
                    method,
                    n_blocks,
                    dtype,
                    n_branches,
                    max_stacked,
                    measure,
                    keeps_input,
                    boundaries,
                    ids,
                    calls,
                }
            },
        )
    })
}

proptest! {
    #![proptest_config(properties(600))]

    #[test]
    fn any_sequence_of_calls_ends_in_full_compute_or_one_consistent_reuse(plan in plan()) {
        let ledger = Ledger::default();
        let mut engine = Engine::new(&plan, &ledger);
        plan.calls.iter().for_each(|call| engine.call(call));

        let Engine { cache, shown, .. } = engine;
        let _ = cache.end_pass();
        dc_cache_destroy(cache.0);
        assert_eq!(ledger.books().held, 0, "everything was given back");
        // The handle is stale now, for ever.
        assert_eq!(cache.begin_run(5), DC_ERR_HANDLE);
        assert_eq!(cache.begin_pass(&pass_of(0, &[0])), DC_ERR_HANDLE);
        assert_eq!(cache.before(0, &shown[..1]), DC_COMPUTE);
        cache.after(0, &shown[..1]);
        assert_eq!(cache.end_pass(), DC_ERR_HANDLE);
    }
}

// ---- sequences that deserve a name ----

const GAINS: [f32; 6] = [0.5, 0.25, -0.125, 0.5, -0.25, 0.75];

fn drifting(step: u32) -> [Tensor; 1] {
    let x = Tensor::of(Dtype::F32, &noise(1, 12));
    x.map(|x| x + 0.03 * step as f32);
    [x]
}

/// "Only boundary blocks need to be asked and reported: 0, front_blocks, n_blocks - back_blocks and
/// the last."
#[test]
fn boundary_calls_alone_are_enough() {
    for (front, back) in [(1, 0), (1, 1), (1, 2), (2, 0), (3, 2), (2, 3)] {
        let options = format!("dbcache,{NO_RAILS},front_blocks={front},back_blocks={back}");
        let toy = Toy::new(&GAINS);
        let run = |asked: &dyn Fn(u32) -> bool| {
            let cache = Setup::new(6, &options).create();
            ok(cache.begin_run(12));
            let pass = |step| {
                let x = drifting(step);
                ok(cache.begin_pass(&pass_of(step, &[0])));
                let mut action = DC_COMPUTE;
                for block in 0..6 {
                    if asked(block) {
                        action = cache.before(block, &x);
                    }
                    if action == DC_COMPUTE {
                        toy.block(block as usize, &x);
                    }
                    if action == DC_COMPUTE && asked(block) {
                        cache.after(block, &x);
                    }
                }
                ok(cache.end_pass());
                x[0].bytes()
            };
            let outputs: Vec<_> = (0..12).map(pass).collect();
            (cache.trace().actions(), outputs)
        };
        let every = run(&|_| true);
        assert!(every.0.contains('s'), "{options}: {}", every.0);
        assert!(run(&|block| [0, front, 6 - back, 5].contains(&block)) == every, "{options}");
    }
}

/// What may come between dc_cache_decide and the span.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Nothing,
    FirstBlockIsNotAsked,
    FirstBlockIsAskedTwice,
    FirstBlockIsShownOtherShapes,
    FirstBlockIsShownNothing,
    FrontIsNotReported,
    FrontIsReportedWithOtherShapes,
    SpanIsShownOtherShapes,
    SpanIsShownNothing,
    SpanIsAskedLate,
}

/// The engine was promised a skip. If it cannot be carried out, all of the span computes.
#[test]
fn a_skip_that_was_decided_is_carried_out_as_a_whole_or_not_at_all() {
    use Trouble::*;
    let toy = Toy::new(&GAINS[..4]);
    for estimator in ["hold", "taylor"] {
        for trouble in [
            Nothing,
            FirstBlockIsNotAsked,
            FirstBlockIsAskedTwice,
            FirstBlockIsShownOtherShapes,
            FirstBlockIsShownNothing,
            FrontIsNotReported,
            FrontIsReportedWithOtherShapes,
            SpanIsShownOtherShapes,
            SpanIsShownNothing,
            SpanIsAskedLate,
        ] {
            let options = format!("{},estimator={estimator}", fbcache());
            println!("{trouble:?}, {estimator}");
            let cache = Setup::new(4, &options).create();
            ok(cache.begin_run(9));
            let computed = drifting(0);
            ok(toy.pass(&cache, &pass_of(0, &[0]), &computed).status);

            let (other, nothing) = ([Tensor::of(Dtype::F32, &[1.0; 7])], []);
            let (x, full) = (drifting(1), drifting(1));
            toy.forward(&full);
            ok(cache.begin_pass(&pass_of(1, &[0])));
            assert_eq!(cache.decide(DC_SKIP), DC_SKIP);
            let mut answers = String::new();
            for block in 0..4 {
                let shown: &[Tensor] = match (trouble, block) {
                    (FirstBlockIsNotAsked, 0) | (SpanIsAskedLate, 1) => {
                        toy.block(block as usize, &x);
                        answers.push('C');
                        continue;
                    }
                    (FirstBlockIsShownOtherShapes, 0) | (SpanIsShownOtherShapes, 1) => &other,
                    (FirstBlockIsShownNothing, 0) | (SpanIsShownNothing, 1) => &nothing,
                    _ => &x,
                };
                let action = cache.before(block, shown);
                answers.push(letter(action));
                if block == 0 && matches!(trouble, FirstBlockIsAskedTwice) {
                    assert_eq!(cache.before(0, &x), DC_COMPUTE);
                }
                if action == DC_COMPUTE {
                    toy.block(block as usize, &x);
                    match (trouble, block) {
                        (FrontIsNotReported, 0) => {}
                        (FrontIsReportedWithOtherShapes, 0) => cache.after(0, &other),
                        _ => cache.after(block, &x),
                    }
                }
            }
            // What was decided, as the engine was answered in the end.
            let skips = answers == "Csss";
            let outcome = if skips { DC_SKIP } else { DC_COMPUTE };
            assert_eq!([cache.decide(DC_UNDECIDED), cache.peek(None, 1)], [outcome; 2]);
            assert_ne!(cache.end_pass(), DC_ERR_DISCARD);
            if skips {
                // Block 0 makes 1.5 x; what is kept is what the others made of the last 1.5 x.
                let start = drifting(0)[0].values();
                let kept = computed[0].values().into_iter().zip(start).map(|(y, x)| y - 1.5 * x);
                let expected: Vec<_> =
                    drifting(1)[0].values().iter().zip(kept).map(|(x, r)| 1.5 * x + r).collect();
                assert_close(&x[0].values(), &expected, Dtype::F32);
            } else {
                assert_eq!(answers, "CCCC");
                assert_eq!(bytes(&x), bytes(&full));
            }
        }
    }
}

fn fbcache() -> String {
    format!("fbcache,threshold=0.2,{NO_RAILS}")
}
