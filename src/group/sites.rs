//! The sites of a group, and what a pass does at each: fill the value in, or make room for it and
//! take it in.
use super::{Group, Last, Place, Site, State, Turn};
use crate::error::{Result, bail};
use crate::estimator::Wanted;
use crate::history::History;
use crate::ops::{Ops, Reduce};
use crate::rows::Stacked;
use crate::rule::{Action, Reason};
use crate::scope::{Base, Scope};

impl<O: Ops> Group<O> {
    /// The place of a block, a layer or the model, which this group is for.
    pub fn place(&self, unit: u32) -> Place {
        let number = if self.policy.scope.is_single() { 0 } else { unit as usize };
        Place { number, entry: unit }
    }

    /// Is this one of the layers that the policy is for? A new one is, while there is room.
    pub fn takes(&self, place: Place) -> bool {
        match self.policy.scope {
            Scope::Layers { first: Some(first), .. } => {
                self.site(place).is_some() || self.n_sites < first
            }
            _ => true,
        }
    }

    /// Its values are kept. Where only the conditional branches are ever skipped, the other is not.
    pub(super) fn keeps(&self, branch: usize) -> bool {
        !(self.policy.cond_only && branch == self.setting.uncond)
    }

    /// If it was ever reached.
    pub(super) fn site(&self, place: Place) -> Option<&Site<O>> {
        self.sites.get(place.number).filter(|site| !site.histories.is_empty())
    }

    pub(super) fn site_mut(&mut self, place: Place) -> &mut Site<O> {
        if self.sites.len() <= place.number {
            let absent = || Site { histories: Vec::new(), state: State::NotReached };
            self.sites.resize_with(place.number + 1, absent);
        }
        let site = &mut self.sites[place.number];
        if site.histories.is_empty() {
            let history = || History::new(self.policy.keep, &*self.policy.estimator);
            site.histories = (0..self.branches.len()).map(|_| history()).collect();
            self.n_sites += 1;
        }
        site
    }

    fn state(&self, place: Place) -> State {
        self.site(place).map_or(State::NotReached, |site| site.state)
    }

    pub(super) fn histories(&mut self) -> impl Iterator<Item = &mut History<O>> {
        self.sites.iter_mut().flat_map(|site| &mut site.histories)
    }

    /// Position of the newest value of a branch, at any site.
    pub(super) fn newest(&self, branch: usize) -> Option<f64> {
        let newest = self.sites.iter().filter_map(|site| site.histories.get(branch)?.newest());
        newest.reduce(f64::max)
    }

    /// A value is computed here and not kept, though other ranks may keep theirs.
    fn miss(&mut self, place: Place, members: &[usize]) {
        let site = self.site_mut(place);
        members.iter().for_each(|member| site.histories[*member].is_lost = true);
    }

    /// A value that may be skipped was passed by: this pass neither fills it nor learns from it.
    pub fn pass_by(&mut self, place: Place) {
        self.land();
        let single = self.policy.scope.is_single();
        if self.turn.is_none() || self.is_reached_at(place) {
            return;
        }
        self.site_mut(place).state = State::Left;
        let Some(mut turn) = self.turn.take() else { return };
        self.miss(place, &turn.members);
        turn.reached = true;
        if single {
            turn.take_back(turn.veto.unwrap_or(Reason::Error));
        }
        self.turn = Some(turn);
    }

    /// Any site was filled.
    pub fn is_filled(&self) -> bool {
        self.sites.iter().any(|site| site.state == State::Filled)
    }

    pub fn is_filled_at(&self, place: Place) -> bool {
        self.state(place) == State::Filled
    }

    pub fn is_settled(&self) -> bool {
        self.turn.as_ref().is_none_or(|turn| turn.decision.is_some())
    }

    pub fn has_sites(&self) -> bool {
        self.n_sites > 0
    }

    pub fn is_reached(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.reached)
    }

    pub fn is_reached_at(&self, place: Place) -> bool {
        self.state(place) != State::NotReached
    }

    pub fn is_open_at(&self, place: Place) -> bool {
        self.state(place) == State::Open
    }

    /// A site whose value has not been reported.
    pub fn open_site(&self) -> Option<usize> {
        if self.n_open == 0 {
            return None;
        }
        self.sites.iter().position(|site| site.state == State::Open)
    }

    /// Sites that the open pass filled, and others that it reached.
    pub fn count(&self) -> (u64, u64) {
        let count = |state| self.sites.iter().filter(|site| site.state == state).count();
        let (filled, idle) = (count(State::Filled), count(State::NotReached));
        (filled as u64, (self.sites.len() - idle - filled) as u64)
    }

    /// A site is reached: its value is filled in, or room is made for the one to be computed.
    /// `input` and `out` hold each member's rows; a layer has no input, and may be given none.
    pub fn enter(
        &mut self,
        ops: &mut O,
        place: Place,
        input: &Stacked,
        out: &Stacked,
        reduce: Option<Reduce>,
    ) -> Result<Action> {
        let front = self.check_front();
        if front.is_err() {
            self.veto(Reason::Error);
        }
        let fits = self.check_shapes(place, input, out);
        if fits.is_err() {
            self.restart();
        }
        let settled = self.settle(ops, reduce);
        let Some(mut turn) = self.turn.take() else {
            return Ok(Action::Compute);
        };
        turn.reached = true;
        let entered = self.enter_settled(ops, &mut turn, place, (input, out), &fits);
        self.turn = Some(turn);
        settled.and(front).and(fits).and(entered)
    }

    /// A change can be measured only if the front was seen from its start; unless the engine has
    /// decided without.
    fn check_front(&self) -> Result<()> {
        let turn = self.turn.as_deref().filter(|turn| !turn.reached);
        let skips = |turn: &Turn<O>| turn.decision.is_some_and(|d| d.action == Action::Skip);
        if turn.is_none_or(skips) {
            return Ok(());
        }
        let measured = !self.measured().is_empty();
        match &self.gauge {
            Some(gauge) if measured && !gauge.has_input() => {
                bail!(State, "before_block(0) was not called: what the front adds is not known")
            }
            _ => Ok(()),
        }
    }

    fn check_shapes(&self, place: Place, input: &Stacked, out: &Stacked) -> Result<()> {
        let (Some(turn), Some(site)) = (&self.turn, self.site(place)) else {
            return Ok(());
        };
        let shown = match self.policy.keep.base {
            Base::Residual => input,
            Base::Output => out,
        };
        let mut members = turn.members.iter().zip(shown.each());
        members.try_for_each(|(member, rows)| site.histories[*member].check(place.entry, rows))
    }

    fn enter_settled(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        place: Place,
        (input, out): (&Stacked, &Stacked),
        fits: &Result<()>,
    ) -> Result<Action> {
        let skip = turn.decision.is_some_and(|decision| decision.action == Action::Skip);
        // What was there when the pass was settled may be gone by now, or never was at this site.
        let lost = match self.site(place) {
            _ if !skip => None,
            Some(site) => self.unusable_at(site, &turn.members, &turn.pass),
            None => Some(Reason::NoHistory),
        };
        if skip && lost.is_none() && fits.is_ok() {
            self.fill(ops, turn, place, input, out);
            self.keep_lagged(turn);
            self.land();
            if let Err(error) = ops.status() {
                turn.take_back(Reason::Error);
                self.site_mut(place).state = State::Left;
                bail!(Discard, "what stands in could not be written: {error}");
            }
            return Ok(Action::Skip);
        }
        if self.policy.scope.is_single() {
            turn.take_back(lost.unwrap_or(Reason::Shape));
        }
        if fits.is_err() {
            turn.members.iter().for_each(|member| self.reshape(place, *member));
        }
        self.site_mut(place).state = State::Left;
        if !turn.learns() {
            self.land();
            self.miss(place, &turn.members);
            return Ok(Action::Compute);
        }
        match self.open(ops, turn, place, input) {
            Ok(()) => {
                self.site_mut(place).state = State::Open;
                self.n_open += 1;
            }
            Err(error) => {
                // Some of what is kept may be newer than the rest: none of it is of use.
                turn.veto.get_or_insert(Reason::Memory);
                self.unstage(place, &turn.members);
                self.land();
                turn.members.iter().for_each(|member| self.lose(place.number, *member));
                self.reclaim();
                return Err(error);
            }
        }
        Ok(Action::Compute)
    }

    fn fill(&mut self, ops: &mut O, turn: &Turn<O>, place: Place, input: &Stacked, out: &Stacked) {
        let site = &mut self.sites[place.number];
        let estimator = &*self.policy.estimator;
        let wanted = Wanted::of(&turn.pass);
        for (k, (member, out)) in turn.members.iter().zip(out.each()).enumerate() {
            site.histories[*member].estimate(ops, estimator, wanted, input.of(k), out);
        }
        site.state = State::Filled;
    }

    fn open(
        &mut self,
        ops: &mut O,
        turn: &mut Turn<O>,
        place: Place,
        input: &Stacked,
    ) -> Result<()> {
        // Where the pass as a whole is skipped, changes go on being measured from an earlier one.
        let computes = turn.decision.is_none_or(|decision| decision.action == Action::Compute);
        if let Some(gauge) = self.gauge.as_mut().filter(|_| computes)
            && gauge.commit(ops, &mut self.pool)?
        {
            let decides = self.deciding(&turn.members).len();
            let position = Some(f64::from(turn.pass.position()));
            let decide = turn.members.iter().take(decides);
            decide.for_each(|branch| self.branches[*branch].reference = position);
        }
        self.keep_lagged(turn);
        if !computes {
            // What was in flight makes room for what waits.
            self.land();
        }
        for (k, member) in turn.members.iter().enumerate() {
            if self.keeps(*member) {
                let history = &mut self.sites[place.number].histories[*member];
                history.open(ops, &mut self.pool, place.entry, input.of(k))?;
            }
        }
        Ok(())
    }

    /// What was staged for these branches goes back into the pool.
    fn unstage(&mut self, place: Place, members: &[usize]) {
        let histories = &mut self.sites[place.number].histories;
        members.iter().for_each(|member| histories[*member].unstage(&mut self.pool));
    }

    fn keep_lagged(&mut self, turn: &mut Turn<O>) {
        if self.policy.lagged
            && let Some(measured) = turn.measured.take()
        {
            let (step, members) = (turn.pass.step, turn.members.clone());
            self.branches[turn.members[0]].last = Some(Last { step, members, measured });
        }
    }

    /// A site's value has been computed: `out` holds each member's rows.
    pub fn leave(&mut self, ops: &mut O, place: Place, out: &Stacked) -> Result<()> {
        let Some(turn) = self.turn.as_ref().filter(|_| self.is_open_at(place)) else {
            return Ok(());
        };
        let (step, members) = (f64::from(turn.pass.position()), turn.members.clone());
        self.sites[place.number].state = State::Left;
        self.n_open -= 1;
        let mut result = Ok(());
        for (member, out) in members.iter().zip(out.each()) {
            if self.keeps(*member) {
                let history = &mut self.sites[place.number].histories[*member];
                result = result.and(history.close(ops, &mut self.pool, step, out));
            }
        }
        self.unstage(place, &members);
        if result.is_err() {
            for member in members {
                if self.keeps(member) {
                    self.reshape(place, member);
                    self.lose(place.number, member);
                }
            }
        }
        result
    }
}
